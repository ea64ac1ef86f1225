"""Fixtures that open pages in headless Chromium."""

import os
import shutil

import pytest

from rushlight.viewer import write_page


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "no chromium: apt-get install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


class Page:
    """A page in a tab, with its requests and console errors."""

    def __init__(self, tab):
        self.tab = tab
        self.requests = []
        self.complaints = []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", lambda message: self.complaints.append(message.text))

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)


@pytest.fixture
def phone():
    """Browser options of a phone: a narrow touch screen."""
    return PHONE


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a page, and checks afterwards that it made no requests and logged no errors."""
    pages = []

    def run(html, **options):
        path = tmp_path / "page.html"
        write_page(path, html)
        page = Page(browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options}))
        pages.append(page)
        page.tab.goto(path.as_uri())
        return page

    yield run
    for page in pages:
        assert page.complaints == []
        assert len(page.requests) == 1, "the page itself and nothing else"
        page.tab.close()
