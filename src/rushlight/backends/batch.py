"""The rows of one step: whose they are, where they stand, and where their keys and values lie."""

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
    """What a model keeps of every position: n_layer × n_kv_head × head_dim keys, and as many values."""

    n_layer: int
    n_kv_head: int
    head_dim: int


KVCache = Any
"""Blocks of keys and values on the device; only the backend that made it looks inside."""


class Chunk(NamedTuple):
    """The next tokens of one sequence.

    Attributes:
        ids: the token ids, at least one.
        position: the position of the first; everything before it is in the cache already.
        blocks: the sequence's blocks in the cache, in order: position p lies in blocks[p // BLOCK_SIZE].
        all_logits: whether logits are wanted for every token, or only for the last.
    """

    ids: Sequence[int]
    position: int
    blocks: Sequence[int]
    all_logits: bool = False


class Span(NamedTuple):
    """One sequence's part in a batch: rows `rows`, at positions from `position`, keys and values in `blocks`."""

    rows: slice
    position: int
    blocks: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The N rows of one step over S sequences. Prefill, decode and any mixture of them are the same thing.

    Attributes:
        ids: (N,) token ids.
        positions: (N,) each row's position in its sequence.
        row_starts: (S + 1,) sequence s has the rows row_starts[s] to row_starts[s + 1].
        block_tables: (S, M) block j of sequence s holds its positions from j·BLOCK_SIZE; -1 where it has no more.
        logit_rows: (R,) the rows whose logits are wanted.
        cache: where keys and values are kept.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    cache: KVCache

    @classmethod
    def of(cls, chunks: Sequence[Chunk], cache: KVCache) -> Batch:
        """Lays the chunks of different sequences one after another."""
        import numpy as np

        # Lists, each made an array at once: for the few numbers of a decode step, an operation on arrays takes longer.
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
    def whole(cls, ids: Sequence[int]) -> Batch:
        """One sequence from its beginning to its end, for models that keep no keys and values."""
        return cls.of([Chunk(ids, 0, (), all_logits=True)], cache=None)

    def unfold_rows(self, size: int, before: int) -> NDArray[np.int32]:
        """(N, size) for each row the rows from `before` ahead of it on, in its own sequence; -1 beyond its ends.

        Raises:
            RequestError: a sequence does not begin in this batch: what stands before is not here any more.
        """
        import numpy as np

        if any(span.position for span in self.spans()):
            raise RequestError("this model looks at the tokens beside each one: a text must go through it whole")
        rows = np.arange(len(self.ids), dtype=np.int32)[:, None] + np.arange(-before, size - before, dtype=np.int32)
        n_rows = np.diff(self.row_starts)
        first, end = np.repeat(self.row_starts[:-1], n_rows), np.repeat(self.row_starts[1:], n_rows)
        return np.where((rows >= first[:, None]) & (rows < end[:, None]), rows, np.int32(-1))

    def spans(self) -> Iterator[Span]:
        """The sequences' parts, in order of rows."""
        for s, blocks in enumerate(self.block_tables):
            start, stop = int(self.row_starts[s]), int(self.row_starts[s + 1])
            yield Span(slice(start, stop), int(self.positions[start]), blocks)
