"""What commands that can write a web page share: its flags, and where it goes."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from rushlight.cli.options import OUTPUT
from rushlight.cli.terminal import say
from rushlight.errors import printable_line

Html = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", rich_help_panel=OUTPUT, help="Write a web page that needs no network instead."
    ),
]
Open = Annotated[bool, typer.Option("--open", rich_help_panel=OUTPUT, help="Show the page in the browser.")]


def deliver(page: str, path: Path | None, *, open_page: bool) -> None:
    """Writes the page where it was asked for, or where there is room, and shows it if that was asked for."""
    from rushlight.viewer import write_page

    # A page that nobody named stays: the browser may read it at any time.
    path = path or Path(tempfile.mkdtemp(prefix="rushlight-")) / "page.html"
    write_page(path, page)
    say(printable_line(f"wrote {path}"))
    if open_page and not webbrowser.open(path.absolute().as_uri()):
        say("no browser was found: open the page in one yourself")
