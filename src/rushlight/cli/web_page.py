"""The flags --html and --open, and writing and opening the page."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from rushlight.cli.options import OUTPUT
from rushlight.cli.terminal import write_err
from rushlight.errors import printable_line

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", rich_help_panel=OUTPUT, help="Write a self-contained web page instead."),
]
Open = Annotated[bool, typer.Option("--open", rich_help_panel=OUTPUT, help="Open the page in the browser.")]


def deliver(page: str, path: Path | None, *, open_page: bool) -> None:
    """Writes the page to `path`, or to a temporary file, and opens it in the browser if requested."""
    from rushlight.viewer import write_page

    # The temporary file is kept: the browser may read it at any time.
    path = path or Path(tempfile.mkdtemp(prefix="rushlight-")) / "page.html"
    write_page(path, page)
    write_err(printable_line(f"wrote {path}"))
    if open_page and not webbrowser.open(path.absolute().as_uri()):
        write_err("no browser found: open the page yourself")
