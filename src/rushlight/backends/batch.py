"""The rows of one step: their sequences, positions, and blocks in the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

BLOCK_SIZE = 64
"""Positions in a block of the KV cache."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """The keys and values of one position: n_layer × n_kv_head × head_dim numbers each."""

    n_layer: int
    n_kv_head: int
    head_dim: int


KVCache = Any
"""Blocks of keys and values on the device; opaque outside the backend that allocated them."""


class Chunk(NamedTuple):
    """The next tokens of one sequence.

    Attributes:
        ids: the token ids, at least one.
        position: the position of the first; the positions before it are cached.
        blocks: the sequence's blocks in the cache, in order: blocks[p // BLOCK_SIZE] holds position p.
        all_logits: whether to compute logits for every token, or only for the last.
    """

    ids: Sequence[int]
    position: int
    blocks: Sequence[int]
    all_logits: bool = False


class Span(NamedTuple):
    """One sequence's part of a batch: its rows, the position of the first, and the sequence's blocks."""

    rows: slice
    position: int
    blocks: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The N rows of one step over S sequences: prefill, decode, or any mixture of them.

    Attributes:
        ids: (N,) token ids.
        positions: (N,) each row's position in its sequence.
        row_starts: (S + 1,) sequence s has the rows row_starts[s] to row_starts[s + 1].
        block_tables: (S, M) block j of sequence s holds its positions from j·BLOCK_SIZE; -1 after its last block.
        logit_rows: (R,) the rows to compute logits for.
        cache: the KV cache.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    cache: KVCache

    @classmethod
    def of(cls, chunks: Sequence[Chunk], cache: KVCache) -> Batch:
        """The chunks of different sequences, their rows in this order."""
        import numpy as np

        # Lists, converted at the end: array operations take longer for the few numbers of a decode step.
        ids: list[int] = []
        positions: list[int] = []
        row_starts = [0]
        block_tables: list[int] = []
        logit_rows: list[int] = []
        width = max([len(chunk.blocks) for chunk in chunks])
        for chunk_ids, position, blocks, all_logits in chunks:
            start, stop = len(ids), len(ids) + len(chunk_ids)
            ids.extend(chunk_ids)  # += would add an array, element by element
            positions += range(position, position + len(chunk_ids))
            row_starts.append(stop)
            block_tables.extend(blocks)
            block_tables += [-1] * (width - len(blocks))
            logit_rows += range(start if all_logits else stop - 1, stop)
        return cls(
            ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            row_starts=np.array(row_starts, np.int32),
            block_tables=np.array(block_tables, np.int32).reshape(len(chunks), width),
            logit_rows=np.array(logit_rows, np.int32),
            cache=cache,
        )

    @classmethod
    def of_sequence(cls, ids: Sequence[int]) -> Batch:
        """One entire sequence, for models that cache no keys and values."""
        return cls.of([Chunk(ids, 0, (), all_logits=True)], cache=None)

    def require_cache(self) -> None:
        """Raises RequestError if the batch has no KV cache, which attention needs."""
        if self.cache is None:
            raise RequestError(
                "attention needs a KV cache, and a batch of Batch.of_sequence has none",
                remedy="load the model with rushlight.load, and call its logits(ids)",
            )

    def unfold_rows(self, size: int, before: int) -> NDArray[np.int32]:
        """(N, size) the rows around each row: from `before` rows before it, in its own sequence; -1 beyond its ends.

        Raises:
            RequestError: the batch continues a sequence, whose earlier rows are not in it.
        """
        import numpy as np

        if any(span.position for span in self.spans()):
            raise RequestError(
                "this model reads the tokens around each one: expected an entire sequence, found a continuation"
            )
        rows = np.arange(len(self.ids), dtype=np.int32)[:, None] + np.arange(-before, size - before, dtype=np.int32)
        n_rows = np.diff(self.row_starts)
        first, end = np.repeat(self.row_starts[:-1], n_rows), np.repeat(self.row_starts[1:], n_rows)
        return np.where((rows >= first[:, None]) & (rows < end[:, None]), rows, np.int32(-1))

    def spans(self) -> Iterator[Span]:
        """The sequences' parts, in the order of rows."""
        for s, blocks in enumerate(self.block_tables):
            start, stop = int(self.row_starts[s]), int(self.row_starts[s + 1])
            yield Span(slice(start, stop), int(self.positions[start]), blocks)
