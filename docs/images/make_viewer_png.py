"""Writes docs/images/viewer.png: the page of `rushlight inspect --html`, of the checkpoint in inspect.svg.

Needs Playwright and a chromium, as the tests of the page do.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from make_inspect_svg import write_checkpoint
from playwright.sync_api import sync_playwright

from rushlight.loading.inspection import inspect
from rushlight.viewer import write_page

HERE = Path(__file__).resolve().parent
SIZE = {"width": 1180, "height": 760}


def main() -> None:
    """Draw the page, dark, with a module in the middle selected."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), sync_playwright() as playwright:
        write_checkpoint(Path("model.safetensors"))
        write_page("page.html", inspect("model.safetensors"))
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="dark")
        page.goto(Path("page.html").absolute().as_uri())
        for _ in range(2):
            page.keyboard.press("ArrowDown")
        page.screenshot(path=HERE / "viewer.png")
        browser.close()


if __name__ == "__main__":
    main()
