"""Wraps streamed text between words, by the display width of its characters."""

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
    """The display width of a text: wide East Asian characters take two columns, combining marks none."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if _is_wide(character):
        return 2
    return 0 if unicodedata.category(character) in {"Mn", "Me", "Cf"} else 1


def _is_wide(unit: str) -> bool:
    return len(unit) == 1 and unicodedata.east_asian_width(unit) in "WF"


def shortened(text: str, columns: int) -> str:
    """The text with its middle replaced by "..." if it is wider than the columns."""
    if cells(text) <= columns:
        return text
    room = max(columns - 3, 0)
    return f"{_head(text, room - room // 2)}...{_head(text[::-1], room // 2)[::-1]}"


def _head(text: str, columns: int) -> str:
    while cells(text) > columns:
        text = text[: columns if len(text) > columns else -1]
    return text


def wrapped(text: str, columns: int) -> str:
    """The text with line breaks between words, so that every row fits the columns."""
    return WordWrap(lambda: columns).push(text)


class WordWrap:
    """Breaks streamed text into rows between words, and words that are wider than a row.

    Pieces are written immediately, even if their last word continues in the next piece. If that word then exceeds the
    row, it is erased and written again in the next row.

    Args:
        columns: returns the current width of the terminal.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._used = 0
        self._word = ""
        """The last word of the row, which the next piece may continue."""
        self._due = False
        """Whether the next word starts a row, since a space did not fit."""

    def push(self, piece: str) -> str:
        """The text to write for the next piece."""
        # The last column stays free: some terminals wrap when it is filled.
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
            self._word = ""  # rows may break before and after it
        if self._due or self._used + width > limit:
            before = self._next_row()
        if self._used + width > limit:
            return before + self._broken(unit, limit)
        self._used += width
        self._word = "" if is_wide else self._word + unit
        return before + unit

    def _next_row(self) -> str:
        """Moves the last word of the row to the next row; nothing if the word already starts its row."""
        width = cells(self._word)
        if self._used == width and not self._due:
            return ""
        self._used, self._due = width, False
        return (f"\x1b[{width}D\x1b[K" if width else "") + "\n" + self._word

    def _broken(self, unit: str, limit: int) -> str:
        """A word that is wider than a row, broken into several."""
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
    """Splits a piece into line breaks, spaces, wide characters and runs of other characters."""
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
