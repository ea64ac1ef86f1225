"""A model with its cache: the one place where a forward is called, and one sequence run through it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.errors import MemoryLimitError
from rushlight.host.memory import naming_shortages, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import KVShape
    from rushlight.backends.protocol import Array, Backend, SamplingRow

Forward = Callable[[Batch], Any]
"""A model: a batch of N rows -> (R, V) logits on the device."""

PREFILL_ROWS = 256
"""Tokens of prompts that go through the model at once: bounds the memory of activations."""


def require_room(n_blocks: int, backend: Backend, kv_shape: KVShape, what: str, remedy: str) -> None:
    """Require that a cache of so many blocks, for `what`, fits in memory.

    Raises:
        MemoryLimitError: it does not; says what it needs and what there is.
    """
    need, have = n_blocks * backend.kv_block_bytes(kv_shape), backend.available_bytes()
    if need > have:
        raise MemoryLimitError(
            f"keys and values of {what} do not fit in memory", need_bytes=need, have_bytes=have, remedy=remedy
        )


class ModelRunner:
    """Runs a model over one cache.

    Args:
        forward: the model.
        backend: the device it runs on.
        kv_shape: what it keeps of every position.
        n_blocks: of the cache.
    """

    def __init__(self, forward: Forward, backend: Backend, kv_shape: KVShape, n_blocks: int) -> None:
        self._forward = forward
        self._backend = backend
        with naming_shortages("the cache of keys and values", n_blocks * backend.kv_block_bytes(kv_shape)):
            self._cache = backend.kv_cache(kv_shape, n_blocks)

    def on_device(self, chunks: Sequence[Chunk]) -> Array:
        """The next tokens of some sequences, in one step -> (R, V) logits, chunk after chunk."""
        try:
            with np.errstate(all="ignore"):  # what overflows shows in the logits, and no token is chosen from those
                return self._forward(Batch.of(chunks, self._cache))
        except MemoryError as error:
            raise out_of_memory("a step of the model") from error

    def __call__(self, chunks: Sequence[Chunk]) -> NDArray[np.floating]:
        """The same, on the host."""
        return self._backend.to_numpy(self.on_device(chunks))


class Context:
    """Feeds one sequence to a model, so that each token is computed once.

    Args:
        forward: the model.
        backend: the device it runs on.
        kv_shape: what it keeps of every position.
        capacity: the most tokens that will be fed.
    """

    def __init__(self, forward: Forward, backend: Backend, kv_shape: KVShape, capacity: int) -> None:
        self._blocks = range(-(-capacity // BLOCK_SIZE))
        self._backend = backend
        self._runner = ModelRunner(forward, backend, kv_shape, len(self._blocks))
        self.length = 0
        """Tokens fed so far; the position of the next."""

    def feed(
        self, ids: Sequence[int], *, all_logits: bool = False, chunk_rows: int = PREFILL_ROWS
    ) -> NDArray[np.floating]:
        """Runs the next tokens, `chunk_rows` at a time.

        Returns:
            (len(ids), V) logits, or (1, V) of the last token alone. The same bits for every `chunk_rows`.
        """
        logits = self._feed(ids, all_logits, chunk_rows)
        return np.concatenate([self._backend.to_numpy(part) for part in logits])

    def sample(self, ids: Sequence[int], draw: SamplingRow) -> int:
        """Runs the next tokens and chooses the one after them, on the device: see `Backend.sample`."""
        [logits] = self._feed(ids, all_logits=False, chunk_rows=PREFILL_ROWS)
        [token] = self._backend.sample(logits, [draw])
        return token

    def _feed(self, ids: Sequence[int], all_logits: bool, chunk_rows: int) -> list[Array]:
        logits = []
        for start in range(0, len(ids), chunk_rows):
            chunk = Chunk(ids[start : start + chunk_rows], self.length, self._blocks, all_logits)
            out = self._runner.on_device([chunk])
            self.length += len(chunk.ids)
            if all_logits or start + chunk_rows >= len(ids):
                logits.append(out)
        return logits
