"""The page in headless Chromium. Run by `pytest -m browser`; needs Playwright and Debian's chromium."""

import math

import pytest

from rushlight.checkpoint.stats import TensorStats
from rushlight.checkpoint.tree import ModuleTree
from rushlight.viewer import tree_page

pytestmark = pytest.mark.browser

BLOCK = {"ln_1.weight": (8,), "attn.c_attn.weight": (8, 24), "attn.bias": (1, 1, 4, 4), "mlp.c_fc.weight": (8, 32)}


def tree(shapes, marks=None, dtype="F32"):
    tensors = [(name, dtype, shape, 4 * math.prod(shape)) for name, shape in shapes.items()]
    return ModuleTree.build(tensors, source="model.safetensors", files=["model.safetensors"], marks=marks)


def gpt(n_layer=12):
    shapes = {"wte.weight": (100, 8)}
    shapes |= {f"h.{i}.{name}": shape for i in range(n_layer) for name, shape in BLOCK.items()}
    shapes |= {"ln_f.weight": (8,), "lm_head.weight": (100, 8)}
    marks = {name: "buffer" for name in shapes if name.endswith("attn.bias")}
    return tree(shapes, marks | {"lm_head.weight": "tied"})


class TreePage:
    """Reads and controls the page."""

    def __init__(self, page):
        self.tab = page.tab
        self.press = page.press
        self.complaints = page.complaints

    def labels(self):
        """The visible names with their indentation."""
        rows = self.tab.locator("[role=treeitem]").all()
        return ["  " * (int(row.get_attribute("aria-level")) - 1) + row.locator(".label").inner_text() for row in rows]

    def active(self):
        """The name of the active row, as a screen reader sees it."""
        row = self.tab.locator(f"#{self.tab.locator('#tree').get_attribute('aria-activedescendant')}")
        assert row.get_attribute("aria-selected") == "true"
        return row.locator(".label").inner_text()

    def row(self, label):
        return self.tab.locator("[role=treeitem]", has=self.tab.get_by_text(label, exact=True)).first


@pytest.fixture
def show(open_page):
    """Opens the page of a tree."""
    return lambda shown, stats=None, **options: TreePage(open_page(tree_page(shown, stats), **options))


def test_equal_blocks_are_folded_and_can_be_unfolded(show):
    page = show(gpt())
    assert page.labels() == [
        "wte.weight", "h.0 … h.11", "  ln_1.weight", "  attn", "    c_attn.weight", "    bias", "  mlp.c_fc.weight",
        "ln_f.weight", "lm_head.weight",
    ]  # fmt: skip
    assert page.row("h.0 … h.11").locator(".times").inner_text() == "×12"
    page.tab.get_by_role("button", name="Fold equal blocks").click()
    assert [label for label in page.labels() if label.startswith("h.")][:3] == ["h.0", "h.1", "h.2"]


def test_totals_shares_and_marks_are_shown(show):
    page = show(gpt())
    n_parameters = 100 * 8 + 12 * (8 + 8 * 24 + 8 * 32) + 8
    assert f"{n_parameters:,}" in page.tab.locator("#facts").inner_text()
    assert page.row("lm_head.weight").locator(".marked").inner_text() == "tied"
    assert page.row("bias").locator(".marked").inner_text() == "buffer"
    blocks = page.row("h.0 … h.11").locator(".share")
    assert blocks.inner_text() == f"{100 * 12 * 456 / n_parameters:.1f}%"
    width = blocks.locator("b").bounding_box()["width"] / blocks.locator("i").bounding_box()["width"]
    assert width == pytest.approx(12 * 456 / n_parameters, abs=0.02)


def test_a_click_folds_and_unfolds(show):
    page = show(gpt())
    page.row("attn").click()
    assert "    bias" not in page.labels()
    assert page.row("attn").get_attribute("aria-expanded") == "false"
    page.tab.get_by_role("button", name="Collapse all").click()
    assert page.labels() == ["wte.weight", "h.0 … h.11", "ln_f.weight", "lm_head.weight"]
    page.tab.get_by_role("button", name="Expand all").click()
    assert len(page.labels()) == 9


def test_arrow_keys_move_and_fold(show):
    page = show(gpt())
    assert page.active() == "wte.weight"
    page.press("ArrowDown", "ArrowRight")
    assert page.active() == "ln_1.weight"
    page.press("ArrowDown", "ArrowLeft")
    assert page.row("attn").get_attribute("aria-expanded") == "false"
    page.press("ArrowLeft")
    assert page.active() == "h.0 … h.11"
    page.press("Enter")
    assert len(page.labels()) == 4
    page.press("ArrowRight")
    assert len(page.labels()) == 7
    page.press("End")
    assert page.active() == "lm_head.weight"
    page.press("ArrowDown")
    assert page.active() == "lm_head.weight"
    page.press("Home", "ArrowUp")
    assert page.active() == "wte.weight"
    page.press("PageDown")
    assert page.active() == "lm_head.weight"
    assert page.tab.locator("#detail").inner_text().startswith("lm_head.weight · F32 (100, 8) · tied")


def test_search_works_by_keyboard(show):
    page = show(gpt())
    page.press("/")
    page.tab.keyboard.type("h.7 c_attn")
    assert page.labels() == ["h.7", "  attn", "    c_attn.weight"]
    assert page.tab.locator("#found").inner_text() == "1 of 51 tensors"
    assert page.tab.locator("mark").all_inner_texts() == ["h.7", "c_attn"]
    page.press("ArrowDown", "ArrowDown")
    assert page.active() == "attn"
    page.press("Escape")
    assert len(page.labels()) > 3
    assert page.tab.locator("#search").input_value() == ""
    page.press("Home")
    assert page.active() == "wte.weight"


@pytest.mark.parametrize(
    ("query", "found"),
    [("mark:tied", 1), ("mark:buffer", 12), ("shape:24", 12), ("dtype:f32 LN_", 13), ("dtype:BF16", 0), ("zzz", 0)],
)
def test_search_filters_the_tree(show, query, found):
    page = show(gpt())
    page.tab.fill("#search", query)
    assert page.tab.locator("#found").inner_text() == f"{found} of 51 tensors"
    assert page.tab.locator("#nothing").is_visible() == (found == 0)


def test_clicking_a_dtype_filters(show):
    mixed = ModuleTree.build([("a", "F32", (4,), 16), ("b", "BF16", (2,), 4)], source="m")
    page = show(mixed)
    page.tab.get_by_role("button", name="BF16").click()
    assert page.labels() == ["b"]
    page.tab.get_by_role("button", name="BF16").click()
    assert page.labels() == ["a", "b"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_color_scheme(show, scheme):
    page = show(gpt(), color_scheme=scheme)

    def brightness():
        colour = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    first = brightness()
    assert (first > 600) == (scheme == "light")
    page.tab.get_by_role("button", name="Dark").click()
    assert (brightness() > 600) == (scheme == "dark")


def test_ten_thousand_tensors_are_drawn_in_a_second(show):
    shapes = {
        f"model.layers.{i}.experts.{j}.w{k}.weight": (i + 1, j + 1) for i in range(40) for j in range(84) for k in "123"
    }
    assert len(shapes) > 10_000
    page = show(tree(shapes))
    assert page.tab.evaluate("performance.getEntriesByName('drawn')[0].startTime") < 1000
    page.tab.get_by_role("button", name="Expand all").click()
    assert page.tab.locator("[role=treeitem]").count() < 100
    took = page.tab.evaluate(
        "() => { const start = performance.now(); const box = document.getElementById('search');"
        "box.value = 'experts.83.w2'; box.dispatchEvent(new Event('input')); return performance.now() - start; }"
    )
    assert took < 500
    assert page.tab.locator("#found").inner_text() == "40 of 10,080 tensors"
    page.press("Escape", "End")
    assert page.active() == "w3.weight"


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(1)</script>",
        "__proto__",
        "constructor",
        "a\u202eb",
        "{{data}}",
        "",
    ],
)
def test_hostile_names_are_text(show, name):
    page = show(tree({name: (2,), "b": (3,)}))
    assert page.labels()[0] == ("a\\u202eb" if "\u202e" in name else name or '""')
    assert page.tab.locator("img").count() == 0


def test_the_policy_blocks_injected_scripts(show):
    page = show(gpt())
    ran = page.tab.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "return window.ran ?? null; }"
    )
    assert ran is None
    refused = page.tab.evaluate("fetch('https://192.0.2.1/').then(() => false, () => true)")
    assert refused
    assert all("Content Security Policy" in complaint for complaint in page.complaints)
    page.complaints.clear()


def test_statistics_are_shown(show):
    shown = tree({"h.0.w": (4,), "h.1.w": (4,)})
    stats = {"h.0.w": TensorStats(-1.5, 2.0, 0.25, 1.0, 0, 0), "h.1.w": TensorStats(None, None, None, None, 3, 1)}
    page = show(shown, stats)
    assert page.row("h.0.w").locator(".stat").all_inner_texts() == ["-1.5", "2", "0.25", "1", "0"]
    assert page.row("h.1.w").locator(".stat").all_inner_texts() == ["–", "–", "–", "–", "4"]
    page.press("End")
    assert "3 NaN, 1 Inf" in page.tab.locator("#detail").inner_text()


def test_an_empty_checkpoint_is_shown(show):
    page = show(tree({}))
    page.press("ArrowDown", "ArrowRight", "End", "/", "Escape", "Enter")
    assert page.labels() == []


def test_on_a_phone_rows_are_large_and_keys_are_hidden(open_page, phone):
    tab = open_page(tree_page(gpt()), **phone).tab
    first, second = (tab.locator("[role=treeitem]").nth(i).bounding_box() for i in range(2))
    assert first["height"] == second["y"] - first["y"] == 40
    assert not tab.locator(".search kbd").is_visible()
    assert not tab.locator(".keys").is_visible()


def test_the_placeholder_ends_before_the_key(open_page):
    tab = open_page(tree_page(gpt()), viewport={"width": 390, "height": 844}).tab
    field, key = tab.locator("#search"), tab.locator(".search kbd")
    padding = field.evaluate("field => parseFloat(getComputedStyle(field).paddingRight)")
    box = field.bounding_box()
    assert box["x"] + box["width"] - padding <= key.bounding_box()["x"]
    assert field.evaluate("field => getComputedStyle(field).textOverflow") == "ellipsis"
