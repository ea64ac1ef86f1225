"""`rushlight devices`: list the devices of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug
from rushlight.cli.terminal import out_json, show

EXAMPLES = """
\b
Examples:
  rushlight devices
  rushlight devices --json
"""


def devices(
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON array on stdout instead.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """List the devices that models can run on."""
    from rushlight.backends import devices

    found = devices()
    if as_json:
        out_json([device._asdict() for device in found], indent=2)
        return

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("device", "available", "description", "next step"):
        table.add_column(head, overflow="fold")  # a truncated command cannot be copied
    for device in found:
        available = Text("yes", "green") if device.available else Text("no", "yellow")
        table.add_row(Text(device.name, "bold"), available, device.detail, device.install)
    show(table)
