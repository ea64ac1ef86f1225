"""The content of the page, and writing it atomically."""

import json
import re

import pytest

from rushlight.checkpoint.stats import TensorStats
from rushlight.checkpoint.tree import ModuleTree
from rushlight.viewer import tree_page, write_page


def tree(*names, **options):
    return ModuleTree.build([(name, "F32", (2, 3), 24) for name in names], source="m.safetensors", **options)


def data(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_tree_is_in_the_page():
    held = data(
        tree_page(tree("h.0.w", "h.1.w", "b", marks={"b": "buffer"}, architecture="gpt2", files=["m.safetensors"]))
    )
    assert (held["parameters"], held["bytes"], held["nTensors"], held["architecture"]) == (12, 72, 3, "gpt2")
    assert held["runs"] == [2, 1]
    assert [entry["label"] for entry in held["entries"]] == ["h.0.w", "h.1.w", "b"]
    assert held["entries"][2] == {
        "label": "b", "parameters": 0, "bytes": 24, "dtype": "F32", "shape": "(2, 3)", "mark": "buffer",
    }  # fmt: skip


def test_the_page_has_statistics_if_given():
    stats = {"a": TensorStats(-1.0, 2.0, 0.5, 1.0, 3, 0)}
    held = data(tree_page(tree("a", "b"), stats))
    assert held["hasStats"]
    assert held["entries"][0]["stats"] == {"min": -1.0, "max": 2.0, "mean": 0.5, "std": 1.0, "n_nan": 3, "n_inf": 0}
    assert "stats" not in held["entries"][1]
    assert not data(tree_page(tree("a")))["hasStats"]


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "{{script}}", "\\u003c", "]]>"])
def test_hostile_names_stay_inside_the_data(name):
    page = tree_page(tree(name, metadata={name: name}))
    assert data(page)["entries"][0]["label"] == name
    assert page.count("<script") == tree_page(tree("a")).count("<script")


def test_control_characters_are_escaped():
    held = data(tree_page(tree("\x1b[31m\u202e", "")))
    assert [entry["label"] for entry in held["entries"]] == ["\\x1b[31m\\u202e", '""']


def test_a_hostile_source_is_escaped_in_the_title():
    page = tree_page(ModuleTree.build([], source="</title><script>x"))
    assert "<title>&lt;/title&gt;&lt;script&gt;x · rushlight</title>" in page


def test_the_page_makes_no_requests():
    page = tree_page(tree("a"))
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=|unsafe", page)


def test_the_page_is_written_atomically(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "page.html"
    write_page(path, tree_page(tree("a")))
    assert path.read_text(encoding="utf-8") == tree_page(tree("a"))
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_page(path, tree_page(tree("b")))
    assert path.read_text(encoding="utf-8") == tree_page(tree("a"))
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_has_the_mode_of_a_new_file(tmp_path):
    (tmp_path / "any").touch()
    write_page(tmp_path / "page.html", tree_page(tree("a")))
    assert (tmp_path / "page.html").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_page(tmp_path / "none" / "page.html", tree_page(tree("a")))
