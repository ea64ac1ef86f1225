"""`rushlight devices`: what a model can run on here."""

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
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print a JSON array on stdout in place of the table.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """List what a model can run on here."""
    from rushlight.backends import devices

    found = devices()
    if as_json:
        out_json([device._asdict() for device in found], indent=2)
        return

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("device", "available", "what it is", "next step"):
        table.add_column(head, overflow="fold")  # a command that is cut cannot be used
    for device in found:
        available = Text("yes", "green") if device.available else Text("no", "yellow")
        table.add_row(Text(device.name, "bold"), available, device.detail, device.install)
    show(table)
