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

PREFILL_ROWS = 256
"""The most prompt tokens in a step, which bounds the memory of activations."""


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that keep the keys and values of the same positions, and so share block tables.

    Attributes:
        n_layer, n_kv_head, head_dim: as in `KVShape`, for these layers.
        window: the most positions that a row of these layers sees; None is all.
        layers: their numbers in the model.
    """

    n_layer: int
    n_kv_head: int
    head_dim: int
    window: int | None
    layers: tuple[int, ...]

    def first_block(self, position: int) -> int:
        """The first block that a row at this position, or at a later one, sees."""
        return 0 if self.window is None else max(0, position - self.window + 1) // BLOCK_SIZE

    def n_blocks_for(self, length: int, max_rows: int) -> int:
        """The most blocks that a sequence of `length` positions holds at once.

        Args:
            length: its positions.
            max_rows: the most rows of it in a step, which reads and writes the positions from its window on.
        """
        n_blocks = -(-length // BLOCK_SIZE)
        if self.window is None:
            return n_blocks
        return min(n_blocks, -(-(self.window + max_rows - 2) // BLOCK_SIZE) + 1)


@dataclass(frozen=True, slots=True)
class KVShape:
    """The keys and values of one position: n_layer × n_kv_head × head_dim numbers each.

    Attributes:
        n_layer, n_kv_head, head_dim: the sizes.
        windows: for each layer, the most positions that a row sees, or None for all; empty if no layer has a window.
            Keys and values behind the window may be gone from the cache.
    """

    n_layer: int
    n_kv_head: int
    head_dim: int
    windows: tuple[int | None, ...] = ()

    @property
    def groups(self) -> tuple[KVGroup, ...]:
        """The layers by window, in the order of their first layers."""
        layers: dict[int | None, list[int]] = {}
        for layer, window in enumerate(self.windows or (None,) * self.n_layer):
            layers.setdefault(window, []).append(layer)
        return tuple(
            KVGroup(len(each), self.n_kv_head, self.head_dim, window, tuple(each)) for window, each in layers.items()
        )

    @property
    def group_of(self) -> tuple[int, ...]:
        """For each layer, its place in `groups`."""
        found = {layer: g for g, group in enumerate(self.groups) for layer in group.layers}
        return tuple(found[layer] for layer in range(self.n_layer))


def blocks_of_groups(shape: KVShape, n_blocks: int | Sequence[int]) -> Sequence[int]:
    """The number of blocks of each group: `n_blocks` itself, or this number for all."""
    return [n_blocks] * len(shape.groups) if isinstance(n_blocks, int) else n_blocks


KVCache = Any
"""Blocks of keys and values on the device; opaque outside the backend that allocated them."""


class Chunk(NamedTuple):
    """The next tokens of one sequence.

    Attributes:
        ids: the token ids, at least one.
        position: the position of the first; the positions before it are cached.
        blocks: the sequence's block table: blocks[p // BLOCK_SIZE] holds position p. It may be longer, and have -1
            for blocks that no row sees. An int32 array is not copied.
        all_logits: whether to compute logits for every token, or only for the last.
        other_blocks: if the cache has several groups of layers, `blocks` is the table of the first and these are those
            of the others; empty if `blocks` is the table of all.
    """

    ids: Sequence[int]
    position: int
    blocks: Sequence[int] | NDArray[np.int32]
    all_logits: bool = False
    other_blocks: Sequence[NDArray[np.int32]] = ()


class Span(NamedTuple):
    """One sequence's part of a batch: its rows, the position of the first, and the sequence's block table."""

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
        block_tables: for each group of layers, or once for all groups, the block table of each sequence: block j holds
            its positions from j·BLOCK_SIZE. They are views, and grow with their sequences.
        logit_rows: (R,) the rows to compute logits for.
        cache: the KV cache.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    block_tables: tuple[tuple[NDArray[np.int32], ...], ...]
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
        tables = []
        logit_rows: list[int] = []
        for chunk_ids, position, blocks, all_logits, other_blocks in chunks:
            start, stop = len(ids), len(ids) + len(chunk_ids)
            ids.extend(chunk_ids)  # += would add an array, element by element
            positions += range(position, position + len(chunk_ids))
            row_starts.append(stop)
            tables.append((np.asarray(blocks, np.int32), *other_blocks))
            logit_rows += range(start if all_logits else stop - 1, stop)
        return cls(
            ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            row_starts=np.array(row_starts, np.int32),
            block_tables=tuple(zip(*tables, strict=True)),
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

    def tables(self, group: int = 0) -> tuple[NDArray[np.int32], ...]:
        """The block table of each sequence, in a group of layers."""
        return self.block_tables[group if len(self.block_tables) > 1 else 0]

    def spans(self, group: int = 0) -> Iterator[Span]:
        """The sequences' parts, in the order of rows, with the block tables of a group of layers."""
        for s, blocks in enumerate(self.tables(group)):
            start, stop = int(self.row_starts[s]), int(self.row_starts[s + 1])
            yield Span(slice(start, stop), int(self.positions[start]), blocks)
