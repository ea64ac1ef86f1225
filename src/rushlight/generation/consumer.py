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

    from rushlight.generation.sequence import SequenceState


class Consumer:
    """Held by whoever reads some sequences, and let go when they leave, in whatever way."""

    __slots__ = ("__weakref__",)


ConsumerRef = weakref.ref[Consumer]


def watch(consumer: Consumer, sequence: SequenceState, gone: deque[ConsumerRef]) -> None:
    """Has the sequence's reference to its reader put into a queue when the reader has gone.

    In one line: between two, an interrupt could leave a reference that is half made.
    """
    sequence.consumer = weakref.ref(consumer, gone.append)
