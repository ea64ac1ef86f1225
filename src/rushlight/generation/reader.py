"""Whom a text is written for: when nobody is left, it is written no further.

An interrupt that comes while Python code runs because an object is forgotten, in `__del__` or in the `finally` of a
generator, is dropped by the interpreter. So what is done then must be no Python code: a weak reference puts itself into
a queue.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque

    from rushlight.generation.sequence import Sequence


class Reader:
    """Held by whoever reads some sequences, and let go when they leave, in whatever way."""

    __slots__ = ("__weakref__",)


class ReaderRef(weakref.ref[Reader]):
    """The reader of a sequence, referred to weakly."""

    __slots__ = ("sequence",)
    sequence: Sequence


def watch(reader: Reader, sequence: Sequence, queue: deque[ReaderRef]) -> None:
    """Has the sequence's reference to its reader put into a queue when the reader has gone."""
    sequence.reader = ReaderRef(reader, queue.append)
    sequence.reader.sequence = sequence
