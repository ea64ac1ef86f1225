"""The page of a verification in headless Chromium."""

from pathlib import Path

import pytest

import rushlight
from rushlight.proof import verify
from rushlight.viewer import render_page

pytestmark = pytest.mark.browser

FIXTURES = Path(__file__).parents[1] / "fixtures"


def page(activation=None, **options):
    model = rushlight.load(FIXTURES / "gpt2" / "gelu_new", **options)
    if activation:
        model.module.h[1].mlp.act.name = activation
    report = verify(model, FIXTURES / "proof" / "gpt2.golden.safetensors", source="<b>model</b>")
    return render_page("verify", "verified", report.to_json())


def test_a_divergent_port(open_page):
    tab = open_page(page("relu")).tab
    assert tab.locator("h1").inner_text() == "<b>model</b>"
    verdict = tab.locator("#verdict")
    assert verdict.locator("p").first.inner_text() == "Not equal to the recording"
    assert "h.1.mlp.act is the first module that diverges" in verdict.inner_text()
    assert tab.locator("#modules tr").count() == 25
    assert tab.locator("tr.diverges .path").all_inner_texts() == ["h.1.mlp.act"]
    assert tab.locator("tr.diverges .cause").inner_text() == "it computes relu where the recording has gelu_tanh"
    # One dot per module and kind; the divergent module has its own colour and a line.
    assert tab.locator(".plot circle.run").count() == 25
    assert tab.locator(".plot circle.bad").count() == 1
    assert tab.locator(".plot text.bad").text_content() == "h.1.mlp.act"
    bad, good = (tab.locator(f".plot circle.{kind}").first.bounding_box() for kind in ("bad", "forced"))
    assert bad["y"] < good["y"], "larger errors stand higher"


def test_an_equal_port(open_page):
    tab = open_page(page()).tab
    assert tab.locator("#verdict").inner_text() == "Equal to the recording"
    assert tab.locator("tr.equal").count() == 25
    assert tab.locator(".plot line.limit").count() == 2
    assert tab.locator(".plot .bad").count() == 0


def test_quantised_weights_have_no_free_running_tolerance(open_page):
    tab = open_page(page(device="cpu", dtype="int8"), color_scheme="dark").tab
    assert tab.locator("#verdict").inner_text() == "Equal to the recording"
    assert tab.locator(".plot line.limit").count() == 1


def test_a_narrow_window(open_page):
    opened = open_page(page("relu"))
    opened.tab.set_viewport_size({"width": 420, "height": 800})
    assert not opened.tab.locator("td.layer").first.is_visible()
    assert opened.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_phone_the_chart_fades_on_hidden_sides(open_page, phone):
    tab = open_page(page(), **phone).tab
    from playwright.sync_api import expect

    plot = tab.locator("#plot")
    assert plot.evaluate("p => p.scrollWidth > p.clientWidth")
    expect(plot).to_have_class("scroll more more-right")
    plot.evaluate("p => p.scrollLeft = 100")
    expect(plot).to_have_class("scroll more more-right more-left")
    plot.evaluate("p => p.scrollLeft = 10000")
    expect(plot).to_have_class("scroll more more-left")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_names_the_device_and_no_path(open_page):
    html = page(device="reference")
    assert str(FIXTURES) not in html
    assert open_page(html).tab.locator("#facts dd").first.inner_text() == "reference, f32"
