"""Word wrap for a text that comes in pieces, by the columns that its characters take."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["WordWrap", "cells", "shortened", "wrapped"]

_RUNS = re.compile(r"[ \t\n]|[^ \t\n]+")
_TAB = 8


def cells(text: str) -> int:
    """The columns of a terminal that the text takes: wide East Asian characters two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if _is_wide(character):
        return 2
    return 0 if unicodedata.category(character) in {"Mn", "Me", "Cf"} else 1


def _is_wide(unit: str) -> bool:
    return len(unit) == 1 and unicodedata.east_asian_width(unit) in "WF"


def shortened(text: str, columns: int) -> str:
    """The text, with its middle left out where it is wider than the columns."""
    if cells(text) <= columns:
        return text
    room = max(columns - 3, 0)
    return f"{_head(text, room - room // 2)}...{_head(text[::-1], room // 2)[::-1]}"


def _head(text: str, columns: int) -> str:
    while cells(text) > columns:
        text = text[: columns if len(text) > columns else -1]
    return text


def wrapped(text: str, columns: int) -> str:
    """The text with line breaks between words, so that no row takes more than the columns."""
    return WordWrap(lambda: columns).push(text)


class WordWrap:
    """Breaks a text into rows between words; a word that is longer than a row is broken within.

    A piece is written at once, also where a word may go on in the next one. A word that then outgrows its row is erased
    there and written in the next row.

    Args:
        columns: the width of the terminal now; it may change at any time.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._used = 0
        self._word = ""
        """What the row ends with of a word that may go on."""
        self._due = False
        """Whether the next word begins a row, in place of a space that found no room."""

    def push(self, piece: str) -> str:
        """What to write for the next piece."""
        # The last column stays free: a terminal that has filled it may break the row by itself.
        limit = max(self._columns() - 1, 2)
        return "".join(self._place(unit, limit) for unit in _units(piece))

    def _place(self, unit: str, limit: int) -> str:
        if unit == "\n":
            self._used, self._word, self._due = 0, "", False
            return unit
        if unit in {" ", "\t"}:
            width = 1 if unit == " " else _TAB - self._used % _TAB
            self._word = ""
            self._due = self._due or self._used + width > limit
            self._used += 0 if self._due else width
            return "" if self._due else unit
        width, before = cells(unit), ""
        is_wide = _is_wide(unit)
        if is_wide:
            self._word = ""  # rows may break on both sides of it
        if self._due or self._used + width > limit:
            before = self._next_row()
        if self._used + width > limit:
            return before + self._broken(unit, limit)
        self._used += width
        self._word = "" if is_wide else self._word + unit
        return before + unit

    def _next_row(self) -> str:
        """Begins a row with the word that the row ends with; nothing where it begins the row already."""
        width = cells(self._word)
        if self._used == width and not self._due:
            return ""
        self._used, self._due = width, False
        return (f"\x1b[{width}D\x1b[K" if width else "") + "\n" + self._word

    def _broken(self, unit: str, limit: int) -> str:
        """A word that no row has room for, in as many as it takes."""
        parts = []
        for character in unit:
            width = cells(character)
            if self._used + width > limit:
                parts.append("\n")
                self._used, self._word = 0, ""
            parts.append(character)
            self._used += width
            self._word += character
        return "".join(parts)


def _units(piece: str) -> Iterator[str]:
    """Line breaks, spaces, wide characters and runs of others, one by one."""
    for run in _RUNS.findall(piece):
        narrow = ""
        for character in run:
            if not _is_wide(character):
                narrow += character
                continue
            if narrow:
                yield narrow
            yield character
            narrow = ""
        if narrow:
            yield narrow
