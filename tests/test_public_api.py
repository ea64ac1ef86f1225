"""The names that users may rely on, and what is written about them."""

import inspect
import re

import pytest

import rushlight
from rushlight import errors


def test_the_public_names_are_these():
    assert rushlight.__all__ == [
        "AsyncStream",
        "Beam",
        "Chat",
        "Delta",
        "Generation",
        "Model",
        "Perplexity",
        "Request",
        "RushlightError",
        "Score",
        "Stats",
        "Stream",
        "__version__",
        "check",
        "inspect",
        "lens",
        "load",
        "load_module",
        "open_checkpoint",
        "record",
        "verify",
    ]


def test_dir_shows_the_public_names():
    assert dir(rushlight) == sorted(rushlight.__all__)


@pytest.mark.parametrize("name", rushlight.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(rushlight, name)
    assert name == "__version__" or inspect.getdoc(value)


@pytest.mark.parametrize(
    "name", ["Chat", "Model", "Delta", "Stream", "Generation", "Stats", "Score", "Perplexity", "Beam"]
)
def test_every_public_method_is_documented(name):
    members = {member: value for member, value in vars(getattr(rushlight, name)).items() if not member.startswith("_")}
    undocumented = [
        member
        for member, value in members.items()
        if (callable(value) or isinstance(value, property)) and not inspect.getdoc(value)
    ]
    assert undocumented == []


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        rushlight.lode  # noqa: B018


def drawn(error: type, lead: str = "") -> list[str]:
    """The classes below an error as its module's docstring draws them."""
    lines = []
    below = error.__subclasses__()
    for i, child in enumerate(below):
        last = i == len(below) - 1
        lines.append(f"{lead}{'└── ' if last else '├── '}{child.__name__}")
        lines += drawn(child, lead + ("    " if last else "│   "))
    return lines


def test_the_tree_of_errors_is_as_drawn():
    tree = re.findall(r"^    ([│├└─ ]*\w+Error)\b", errors.__doc__, re.MULTILINE)
    assert tree == ["RushlightError", *drawn(errors.RushlightError)]


def test_every_error_has_a_code_of_its_own_and_is_exported():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes)
    assert {error.__name__ for error in classes} <= set(errors.__all__)
