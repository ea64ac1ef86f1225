"""What runs a model: its own modules, or in their place those of a trace or a patch; and the engine of either."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.generation import Engine, Forward
    from rushlight.nn import Module


class Execution:
    """A tree of modules, and the engine that its texts go through.

    The engine is made when it is first needed, because it may reserve memory, and anew in a forked process.

    Args:
        module: the tree.
        forward: the tree as its device runs it best.
        make_engine: makes its engine.

    Attributes:
        module, forward: as given.
    """

    def __init__(self, module: Module, forward: Forward, make_engine: Callable[[], Engine]) -> None:
        self.module = module
        self.forward = forward
        self._make_engine = make_engine
        self._lock = Lock()
        self._made: tuple[int, Engine] | None = None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            MemoryLimitError: it may not have the memory that it was promised.
        """
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = os.getpid(), self._make_engine()
            return self._made[1]
