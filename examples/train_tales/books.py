"""Reads a folder of books as clean plain text."""

import re
from collections.abc import Iterator
from pathlib import Path

PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "\r": None})


def read_books(folder: Path, only: str = "", skip: str = "(?!)") -> Iterator[str]:
    """The .md and .txt files below `folder` whose lower-case relative path matches `only` but not `skip`."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix().lower()
        if path.suffix.lower() in {".md", ".txt"} and re.search(only, name) and not re.search(skip, name):
            yield clean(path.read_text(encoding="utf-8-sig", errors="replace"))


def clean(text: str) -> str:
    """Markdown as plain text: no headings, links or emphasis, straight quotes, one line per paragraph."""
    text = text.translate(PLAIN)
    text = re.sub(r"^(title|author|year|\s*#).*$", "", text, flags=re.IGNORECASE | re.MULTILINE)
    text = re.sub(r"!\[.*?\]\(.*?\)|[*_\[\]]", "", text)
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    text = re.sub(r"\n{2,}", "\n\n", text)
    return re.sub(r"[ \t]+", " ", text).strip()
