"""The lines of a file of any length, each of bounded length."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

MAX_LINE_BYTES = 8 << 20
"""Twice the longest prompt: what JSON adds to most texts fits in too."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input.

    Attributes:
        index: its place in the file, from 0; blank lines have one too.
        raw: its bytes without the line end; of a longer line than MAX_LINE_BYTES, only the beginning.
        n_bytes: how much of the file it takes.
    """

    index: int
    raw: bytes
    n_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether `raw` is all of it."""
        return len(self.raw) <= MAX_LINE_BYTES


def read_lines(file: BinaryIO) -> Iterator[Line]:
    r"""Every line that is not blank, as it is read. Lines end with \n or \r\n; the last may have no end.

    A byte order mark at the beginning, as some editors on Windows write it, is no part of the first line.
    """
    index = 0
    while raw := file.readline(MAX_LINE_BYTES + 2):
        n_bytes = len(raw)
        part = raw
        while not part.endswith(b"\n") and (part := file.readline(MAX_LINE_BYTES)):
            n_bytes += len(part)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not index:
            raw = raw.removeprefix(BOM_UTF8)
        if raw.strip():
            yield Line(index, raw, n_bytes)
        index += 1
