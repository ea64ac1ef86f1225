"""Reads the lines of a file of any length, with a limit on the length of each."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

MAX_LINE_BYTES = 8 << 20
"""Twice the longest prompt, so that its escapes in JSON usually fit."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input.

    Attributes:
        index: its position in the file, from 0, with blank lines counted.
        raw: its bytes without the line end; a line longer than MAX_LINE_BYTES is truncated.
        n_bytes: its length in the file.
    """

    index: int
    raw: bytes
    n_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether `raw` is the entire line."""
        return len(self.raw) <= MAX_LINE_BYTES


def read_lines(file: BinaryIO) -> Iterator[Line]:
    r"""Yields the lines that are not blank. Lines end with \n or \r\n; the last line may have no end.

    A byte order mark at the start, as some editors on Windows write it, is skipped.
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
