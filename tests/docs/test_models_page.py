"""docs/models.md equals what docs/make_models.py writes."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_current():
    page = runpy.run_path(str(DOCS / "make_models.py"))["page"]()
    assert (DOCS / "models.md").read_text(encoding="utf-8") == page, "run `just docs`"
