"""A module tree, plain or instrumented by a trace or patch, with its lazily created engine."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.generation import Engine, Forward
    from rushlight.nn import Module


class Execution:
    """A module tree, and the engine that runs sequences through it.

    The engine is created on first use, because it may reserve memory, and again in a forked process.

    Args:
        module: the tree.
        forward: the tree as its device runs it fastest.
        make_engine: creates the engine.
        is_instrumented: whether hooks of a trace or patch are in the tree.

    Attributes:
        module, forward, is_instrumented: as given.
    """

    def __init__(
        self, module: Module, forward: Forward, make_engine: Callable[[], Engine], *, is_instrumented: bool = False
    ) -> None:
        self.module = module
        self.forward = forward
        self.is_instrumented = is_instrumented
        self._make_engine = make_engine
        self._lock = Lock()
        self._made: tuple[int, Engine] | None = None

    @property
    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            MemoryLimitError: the memory that `kv_bytes` asks for is not available.
        """
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = os.getpid(), self._make_engine()
            return self._made[1]
