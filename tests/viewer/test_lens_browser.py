"""The page of the logit lens in headless Chromium. Run by `pytest -m browser`."""

import pytest

from rushlight.viewer import render_page

pytestmark = pytest.mark.browser


def cell(*tops):
    return [{"id": token, "text": text, "p": p} for token, text, p in tops]


DATA = {
    "model": "<b>m</b>",
    "first": 3,
    "tokens": [{"id": 1, "text": "·a"}, {"id": 2, "text": "</script>"}],
    "blocks": [
        {"path": "h.0", "top": [cell((5, "x", 0.25), (6, "y", 0.125)), cell((7, "·z", 0.5), (5, "x", 0.01))]},
        {"path": "h.1", "top": [cell((5, "x", 0.75), (7, "·z", 0.1)), cell((8, "w", 0.9), (7, "·z", 0.0625))]},
    ],
}


@pytest.fixture
def tab(open_page):
    return open_page(render_page("lens", "t", DATA)).tab


def chosen(tab):
    return tab.locator("#where").inner_text(), tab.locator("#top li").all_inner_texts()


def test_the_grid_is_blocks_by_positions(tab):
    assert tab.locator("h1").inner_text() == "<b>m</b>"
    assert tab.locator("thead th").all_inner_texts()[1:] == ["·a", "</script>"]
    assert tab.locator("tbody tr").all_inner_texts() == ["h.0\tx\t·z", "h.1\tx\tw"]
    assert tab.locator("td.agrees").all_inner_texts() == ["x"]


def test_a_higher_probability_has_a_deeper_colour(tab):
    def lightness(text):
        return tab.get_by_role("gridcell", name=text).evaluate(
            "cell => getComputedStyle(cell).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => +a + +b)"
        )

    assert lightness("w, 90%") < lightness("x, 75%") < lightness("x, 25%")


def test_arrow_keys_select_and_stop_at_the_edges(tab):
    assert chosen(tab) == ("h.1, position 4, after </script>", ["w 90%", "·z 6.3%"])
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowUp")
    assert chosen(tab) == ("h.0, position 4, after </script>", ["·z 50%", "x 1.0%"])
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowUp")
    assert chosen(tab) == ("h.0, position 3, after ·a", ["x 25%", "y 13%"])
    assert tab.locator("td[aria-selected=true]").count() == 1


def test_a_click_selects(tab):
    tab.get_by_role("gridcell", name="x, 75%").click()
    assert chosen(tab) == ("h.1, position 3, after ·a", ["x 75%", "·z 10%"])


def test_colours_follow_the_color_scheme(open_page):
    tab = open_page(render_page("lens", "t", DATA), color_scheme="dark").tab
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.get_by_role("button", name="Dark").click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"


def test_on_a_phone_hidden_columns_are_marked(open_page, phone):
    tokens = [{"id": i, "text": f"·token{i}"} for i in range(12)]
    blocks = [{"path": f"h.{i}", "top": [cell((5, "·word", 0.25))] * 12} for i in range(2)]
    tab = open_page(render_page("lens", "t", {**DATA, "tokens": tokens, "blocks": blocks}), **phone).tab
    from playwright.sync_api import expect

    scroller = tab.locator("#scroller")
    shade = "th => getComputedStyle(th, '::after').content"
    expect(scroller).to_have_class("more more-left")  # at the last token
    assert tab.locator("tbody th").first.evaluate(shade) == '""'
    scroller.evaluate("s => s.scrollLeft = 0")
    expect(scroller).to_have_class("more more-right")
    assert tab.locator("tbody th").first.evaluate(shade) == "none"
    assert "40px" in scroller.evaluate("s => getComputedStyle(s).maskImage"), "it fades at the right"


def test_on_a_phone_cells_are_large_and_keys_are_hidden(open_page, phone):
    tab = open_page(render_page("lens", "t", DATA), **phone).tab
    assert tab.locator("td").first.bounding_box()["height"] >= 40
    assert not tab.locator(".keys").is_visible()
    desk = open_page(render_page("lens", "t", DATA)).tab
    assert desk.locator("td").first.bounding_box()["height"] < 40
    assert desk.locator(".keys").is_visible()
