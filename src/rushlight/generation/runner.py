"""Runs the forward of a language model over a KV cache: for the engine, or for one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS, Batch, Chunk, blocks_of_groups
from rushlight.backends.protocol import version_of
from rushlight.errors import MemoryLimitError, PortError
from rushlight.generation.block_pool import BlockPool
from rushlight.host.memory import naming_shortages, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import KVCache, KVShape
    from rushlight.backends.protocol import Array, Backend, Forward, SamplingRow

SCORED_ROWS = 64
"""The most rows of a step whose logits are all copied to the host."""

SCORED_BYTES = 32 * 2**20
"""The most bytes of these logits in float32, which limits the rows for large vocabularies. Their log-probabilities in
float64 take 2 to 4 times as much."""


class ModelSizes(Protocol):
    """The sizes of a model that generation needs; every `rushlight.models.TextConfig` has them."""

    @property
    def kv_shape(self) -> KVShape: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class LanguageModel(NamedTuple):
    """A model as generation runs it.

    Attributes:
        forward: a batch of N rows -> (R, V) logits on the device.
        backend: the device that computes it.
        kv_shape: the shape of its keys and values.
        context_length: the most tokens of a sequence.
        vocab_size: V.
    """

    forward: Forward
    backend: Backend
    kv_shape: KVShape
    context_length: int
    vocab_size: int

    @classmethod
    def of(cls, forward: Forward, backend: Backend, sizes: ModelSizes) -> LanguageModel:
        """A forward with the sizes of its config."""
        return cls(forward, backend, sizes.kv_shape, sizes.context_length, sizes.vocab_size)

    @property
    def version(self) -> int:
        """Changes when the model's modules do; keys and values computed before are invalid then."""
        return version_of(self.forward)

    @property
    def kv_block_bytes(self) -> int:
        """The size of one block of its keys and values, in all layers."""
        return self.backend.kv_block_bytes(self.kv_shape)

    @property
    def max_scored_rows(self) -> int:
        """The most rows of a step whose logits are all copied to the host, from SCORED_ROWS and SCORED_BYTES."""
        return min(SCORED_ROWS, max(1, SCORED_BYTES // (4 * self.vocab_size)))

    def kv_bytes(self, n_blocks: int | Sequence[int]) -> int:
        """The size of `n_blocks` blocks of its keys and values, as in `kv_cache`."""
        of_groups = zip(self.kv_shape.groups, blocks_of_groups(self.kv_shape, n_blocks), strict=True)
        return sum(self.backend.kv_block_bytes(group) * n for group, n in of_groups)

    def kv_cache(self, n_blocks: int | Sequence[int]) -> KVCache:
        """A zeroed cache of `n_blocks` blocks in every layer, or of that many in each group of layers.

        Raises:
            MemoryLimitError: it cannot be allocated.
        """
        with naming_shortages("the cache of keys and values", self.kv_bytes(n_blocks)):
            return self.backend.kv_cache(self.kv_shape, n_blocks)


def require_room(n_blocks: Sequence[int], model: LanguageModel, contents: str, remedy: str) -> None:
    """Checks that a KV cache of `n_blocks` blocks for each group of layers fits in memory.

    Raises:
        MemoryLimitError: it does not; the error states both sizes, and the `contents` of the cache.
    """
    need, have = model.kv_bytes(n_blocks), model.backend.available_bytes()
    if need > have:
        raise MemoryLimitError(
            f"keys and values of {contents} do not fit in memory", need_bytes=need, have_bytes=have, remedy=remedy
        )


class ModelRunner:
    """Runs a model over one KV cache; the only caller of its forward.

    Args:
        model: the model.
        n_blocks: the size of the cache, as in `LanguageModel.kv_cache`.
    """

    def __init__(self, model: LanguageModel, n_blocks: int | Sequence[int]) -> None:
        self._forward = model.forward
        self._backend = model.backend
        self._vocab_size = model.vocab_size
        self._cache = model.kv_cache(n_blocks)

    def on_device(self, chunks: Sequence[Chunk]) -> Array:
        """Runs the next tokens of some sequences in one step -> (R, V) logits, in the order of the chunks.

        Raises:
            PortError: the forward returned another shape.
            CheckpointError: weights in a mapped file have changed.
        """
        batch = Batch.of(chunks, self._cache)
        try:
            with np.errstate(all="ignore"):  # an overflow shows in the logits, and sampling reports it
                logits = self._forward(batch)
        except MemoryError as error:
            raise out_of_memory("a step of the model") from error
        expected = len(batch.logit_rows), self._vocab_size
        found = tuple(getattr(logits, "shape", ()))
        if found != expected:  # of an array with more rows, the first would be taken for the logits of others
            raise PortError(
                "the model's forward returns logits of the wrong shape",
                expected=expected,
                found=found or type(logits).__name__,
                remedy="return the head's output for self.ops.take(x, batch.logit_rows)",
            )
        self._backend.check_weights()
        return logits

    def __call__(self, chunks: Sequence[Chunk]) -> NDArray[np.floating]:
        """As `on_device`, with the logits on the host."""
        return self._backend.to_numpy(self.on_device(chunks))


class Context:
    """Runs one sequence through a model and keeps its keys and values, so that each token is computed once.

    Args:
        model: the model.
        capacity: the most tokens of the sequence.

    Attributes:
        length: the number of tokens computed so far, and so the position of the next.
    """

    def __init__(self, model: LanguageModel, capacity: int) -> None:
        groups = model.kv_shape.groups
        n_blocks = [-(-capacity // BLOCK_SIZE)] * len(groups)
        self._pool = BlockPool(groups, n_blocks, n_blocks, max_rows=capacity, has_prefix_cache=False)
        self._blocks = self._pool.start(self._pool.match_prefix([]))
        self._backend = model.backend
        self._runner = ModelRunner(model, n_blocks)
        self.length = 0

    def feed(
        self, ids: Sequence[int], *, all_logits: bool = False, chunk_rows: int = PREFILL_ROWS
    ) -> NDArray[np.floating]:
        """Runs the next tokens, `chunk_rows` at a time.

        Returns:
            (len(ids), V) logits; without `all_logits` only those of the last token, (1, V). `chunk_rows` does not
            change their bits.
        """
        logits = self._feed(ids, all_logits, chunk_rows)
        return np.concatenate([self._backend.to_numpy(part) for part in logits])

    def sample(self, ids: Sequence[int], row: SamplingRow) -> int:
        """Runs the next tokens and samples the token after them on the device, as `Backend.sample`."""
        [logits] = self._feed(ids, all_logits=False, chunk_rows=PREFILL_ROWS)
        [token] = self._backend.sample(logits, [row])
        return token

    def _feed(self, ids: Sequence[int], all_logits: bool, chunk_rows: int) -> list[Array]:
        logits = []
        for start in range(0, len(ids), chunk_rows):
            part = ids[start : start + chunk_rows]
            self._pool.grow(self._blocks, self.length + len(part))
            table, *others = self._blocks.views
            out = self._runner.on_device([Chunk(part, self.length, table, all_logits, others)])
            self.length += len(part)
            self._pool.commit(self._blocks, part, self.length)  # frees what fell behind windows
            if all_logits or start + chunk_rows >= len(ids):
                logits.append(out)
        return logits
