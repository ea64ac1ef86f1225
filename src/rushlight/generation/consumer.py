"""Cancels a sequence when its consumer is garbage-collected.

Python drops an interrupt that arrives while `__del__` or the `finally` of a collected generator runs. So no Python code
may run at that moment: a weak reference appends itself to a queue, and the engine reads the queue later.
"""

from __future__ import annotations

import weakref


class Consumer:
    """Held by the code that reads some sequences, and collected when that code ends for any reason."""

    __slots__ = ("__weakref__",)


ConsumerRef = weakref.ref[Consumer]
