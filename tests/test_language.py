"""The wording of code and documents follows the glossary in CONTRIBUTING.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RELAPSES = {
    "'is no X'": r"(?P<idiom>\bthere )?\b(?:is|are|be|was) no (?!longer\b|more \b|less \b|one\b)[a-z]",
    "'mend' for 'fix'": r"\bmend(?:s|ed|ing)?\b",
    "'guess' for a draft token": r"\bguess(?:es|ed|er|ers|ing)?\b",
    "'told' of data": r"\b(?:is|are|was|were) told\b",
    "'so many' for 'that many'": r"\bso many\b",
    "'sitting' for a benchmark run": r"\bsittings?\b",
    "'stranger' for 'unknown'": r"\bstrangers?\b",
    "'texts together' for a batch": r"\btexts (?:that are )?(?:generated |asked for )?together\b",
    "'likeliest' for 'most likely'": r"\blikeliest\b",
    "'goes on' for 'continues'": r"\bgo(?:es)? on with\b",
    "'stands beside'": r"\bstands? beside\b",
    "'held against' for 'compared with'": r"\bheld against\b",
    "'of so much', 'how near'": r"\bhow near\b",
    "'whoever' for the caller": r"\bwhoever\b",
    "'beginnings' for prefixes": r"\bbeginnings\b",
}
"""Discouraged wording and the pattern that finds it, case-insensitively and across line ends."""


def sources() -> list[Path]:
    """Returns the files that are checked: code, kernels and documents."""
    patterns = ("src/**/*.py", "src/**/*.pyi", "native/*.cpp", "native/*.h", "docs/*.md", "examples/**/*.py", "*.md")
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [path for path in sorted(found) if path.name != "CONTRIBUTING.md"]  # its glossary lists them


def relapses(text: str) -> list[str]:
    """Returns the matches of RELAPSES in a text, with their line numbers."""
    joined = re.sub(r"^[ \t]*(?:#|//)", lambda match: " " * len(match[0]), text, flags=re.MULTILINE)
    return [
        f"line {joined.count(chr(10), 0, match.start()) + 1}: {name}: {' '.join(match[0].split())}"
        for name, pattern in RELAPSES.items()
        for match in re.finditer(pattern.replace(" ", r"\s+"), joined, re.IGNORECASE)
        if not match.groupdict().get("idiom")  # "there is no X" is English
    ]


def test_sources_follow_the_glossary():
    files = sources()
    assert {path.suffix for path in files} == {".py", ".pyi", ".cpp", ".h", ".md"}
    found = [f"{path.relative_to(ROOT)}: {each}" for path in files for each in relapses(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "this is no file",
        "what it is\n    # no setting",
        "the doctor mends it",
        "two guesses",
        "the user is told",
        "of so\nmany rows",
        "in one sitting",
        "16 texts together",
        "the likeliest token",
        "whoever asks",
    ],
)
def test_discouraged_wording_is_found(text):
    assert relapses(text)


@pytest.mark.parametrize(
    "text", ["is no longer valid", "there is no one left", "recommended", "a sit-in", "is not a file"]
)
def test_plain_wording_passes(text):
    assert relapses(text) == []
