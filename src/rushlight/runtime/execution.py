"""A module tree, plain or instrumented by a trace or patch, with the engine that runs it."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING

from rushlight.backends.batch import PREFILL_ROWS
from rushlight.generation import Engine

if TYPE_CHECKING:
    from rushlight.generation import LanguageModel
    from rushlight.nn import Module


class Execution:
    """A module tree, and the engine that runs sequences through it.

    Args:
        module: the tree.
        language_model: the model as `rushlight.generation` runs it.
        kv_bytes: the most memory for keys and values; None for the engine's default.
        draft: the draft model.
        is_instrumented: whether the tree has the hooks of a trace or patch.

    Attributes:
        module, language_model, is_instrumented: the arguments.
    """

    def __init__(
        self,
        module: Module,
        language_model: LanguageModel,
        *,
        kv_bytes: int | None = None,
        draft: LanguageModel | None = None,
        is_instrumented: bool = False,
    ) -> None:
        self.module = module
        self.language_model = language_model
        self.is_instrumented = is_instrumented
        self._kv_bytes = kv_bytes
        self._draft = draft
        self._lock = Lock()
        self._engine: tuple[int, Engine] | None = None  # with the id of the process that created it

    @property
    def engine(self) -> Engine:
        """The engine, created on first use because it may reserve memory, and again in a forked process.

        Raises:
            MemoryLimitError: `kv_bytes` exceeds the available memory.
        """
        with self._lock:
            if self._engine is None or self._engine[0] != os.getpid():
                self._engine = os.getpid(), self._create_engine()
            return self._engine[1]

    def _create_engine(self) -> Engine:
        # Under hooks, a prompt runs as one chunk without draft tokens, and never reuses blocks computed under others.
        return Engine(
            self.language_model,
            max_prefill_rows=self.language_model.context_length if self.is_instrumented else PREFILL_ROWS,
            kv_bytes=self._kv_bytes,
            prefix_cache=not self.is_instrumented,
            speculation=not self.is_instrumented,
            draft=self._draft,
        )
