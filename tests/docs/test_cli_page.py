"""docs/cli.md equals the `--help` of the commands."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_current():
    page = runpy.run_path(str(DOCS / "make_cli.py"))["page"]()
    # White space is ignored, since the wrapping of help may change between releases of Typer.
    assert (DOCS / "cli.md").read_text(encoding="utf-8").split() == page.split(), "run `just docs`"
