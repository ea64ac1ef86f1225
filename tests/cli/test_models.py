"""`rushlight models`, and docs/models.md from the same catalogue."""

import json

import pytest
from rich.console import Console
from rich.text import Text

from rushlight.cli.views.listing import listing
from rushlight.models.catalogue import CATALOGUE

GATED = (
    "gated: accept the licence at https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct, then run `hf auth login`\n"
)


def test_every_type_and_checkpoint_is_listed(rushlight):
    done = rushlight("models")
    assert done.code == 0
    assert done.err == GATED
    lines = done.out.splitlines()
    assert lines[0].split() == ["checkpoint", "size", "context", "short", "name"]
    for each in CATALOGUE:
        assert f"{each.model_type}  {each.title}: {each.special}" in lines
    [smollm2] = [line for line in lines if "SmolLM2-135M" in line]
    assert smollm2.split() == ["HuggingFaceTB/SmolLM2-135M-Instruct", "135M", "8,192", "smollm2,", "smollm2:135m"]


def test_gated_checkpoints_are_marked(rushlight):
    done = rushlight("models", "llama")
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert rows["meta-llama/Llama-3.2-1B-Instruct"].endswith("  llama3.2, llama3.2:1b; gated")
    assert "gated" not in rows["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert done.err == GATED
    assert rushlight("models", "smollm2").err == ""
    rows = {line.split()[0]: line for line in rushlight("models", "gemma").out.splitlines()}
    assert rows["google/gemma-7b-it"].endswith("8,192  gated")
    [gemma] = json.loads(rushlight("models", "gemma", "--json").out)
    assert [row["is_gated"] for row in gemma["published"]] == [True, True]


def test_one_type(rushlight):
    done = rushlight("models", "qwen3")
    assert len(done.out.splitlines()) == 2 + 4
    assert "qwen3:0.6b" in done.out


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("smollm2", "HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-360M HuggingFaceTB/SmolLM2-1.7B"),
        ("llama3.2:3b", "meta-llama/Llama-3.2-3B"),
        ("gemma3", "google/gemma-3-270m google/gemma-3-1b google/gemma-3-4b"),  # also a type, of the last one
    ],
)
def test_one_short_name(rushlight, name, ids):
    shown = json.loads(rushlight("models", name, "--json").out)
    found = [row["repo_id"] for each in shown for row in each["published"]]
    assert [repo_id.removesuffix("-Instruct").removesuffix("-it") for repo_id in found] == ids.split()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixtral", "mixtral is a mixture-of-experts model"),
        ("lalma", "'lalma' is neither a built-in type nor a short name"),
    ],
)
def test_another_name_is_refused(rushlight, name, expected):
    done = rushlight("models", name)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err


def test_json(rushlight):
    shown = json.loads(rushlight("models", "--json").out)
    assert [each["model_type"] for each in shown] == [each.model_type for each in CATALOGUE]
    [qwen3] = json.loads(rushlight("models", "qwen3", "--json").out)
    assert qwen3["published"][0] == {
        "repo_id": "Qwen/Qwen3-0.6B",
        "size": "596M",
        "context": 40960,
        "is_gated": False,
        "short_names": ["qwen3", "qwen3:0.6b"],
    }


ROWS = [
    Text("a heading"),
    [Text("owner/a-long-name"), Text("7.2B"), Text("some words about it")],
    [Text("owner/short"), Text("10B"), Text("")],
]
HEADS = ("model", "size", "state")


def lines(width, terminal=True):
    console = Console(width=width, force_terminal=terminal, color_system=None, _environ={})
    shown = listing(HEADS, ROWS, numbers=("size",), console=console).plain.splitlines()
    assert max(map(len, shown)) <= width
    return shown


def test_a_wide_listing_is_aligned():
    assert lines(80) == [
        "model              size  state",
        "a heading",
        "owner/a-long-name  7.2B  some words about it",
        "owner/short         10B",
    ]


def test_a_narrow_listing_is_stacked():
    assert lines(24) == ["a heading", "owner/a-long-name", "  7.2B  some words about", "  it", "owner/short", "  10B"]


def test_the_last_column_wraps():
    rows = [[Text("name"), Text("1"), Text("a sentence that is longer than the room that is left for it")]]
    console = Console(width=44, force_terminal=True, color_system=None, _environ={})
    assert listing(HEADS, rows, console=console).plain.splitlines() == [
        "model  size  state",
        "name   1     a sentence that is longer than",
        "             the room that is left for it",
    ]
