"""The blocks of one sequence: a table for each group of layers, as an array that grows with the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NO_BLOCK = -1
"""In a table, a block whose positions are all behind the window."""


class BlockTable:
    """A growing array of block numbers: block j holds the positions from j·BLOCK_SIZE.

    Steps read it through views, so that a step takes the same time for a long table as for a short one.

    Attributes:
        first: the blocks before this one are NO_BLOCK.
    """

    def __init__(self, first: int = 0, blocks: Sequence[int] | NDArray[np.int32] = ()) -> None:
        self.first = first
        self._n = first + len(blocks)
        self._array: NDArray[np.int32] = np.full(max(4, 2 * self._n), NO_BLOCK, np.int32)
        self._array[first : self._n] = blocks

    def __len__(self) -> int:
        """The number of blocks, those behind the window included."""
        return self._n

    def __getitem__(self, j: int) -> int:
        return int(self._array[j])

    def __setitem__(self, j: int, block: int) -> None:
        self._array[j] = block

    def append(self, block: int) -> None:
        """Adds the block of the next positions."""
        if self._n == len(self._array):
            self._array = np.concatenate([self._array, np.full_like(self._array, NO_BLOCK)])
        self._array[self._n] = block
        self._n += 1

    @property
    def view(self) -> NDArray[np.int32]:
        """The table as an array, not copied."""
        return self._array[: self._n]

    @property
    def held(self) -> list[int]:
        """The blocks from `first` on."""
        blocks: list[int] = self._array[self.first : self._n].tolist()
        return blocks


class SequenceBlocks:
    """The blocks that a sequence holds, in every group of layers.

    Attributes:
        tables: one for each group; none before blocks are allocated.
        n_cached: the number of blocks, from the first, that are in the prefix cache.
        prefix: the id of the prefix that they hold.
        n_found: the number of blocks, from the first, that were in the prefix cache before.
    """

    def __init__(self, tables: Sequence[BlockTable] = (), n_cached: int = 0, prefix: int = 0) -> None:
        self.tables = tuple(tables)
        self.n_cached = self.n_found = n_cached
        self.prefix = prefix

    @property
    def end(self) -> int:
        """The number of positions, from 0, that have a block."""
        return min([len(table) for table in self.tables], default=0) * BLOCK_SIZE

    @property
    def views(self) -> list[NDArray[np.int32]]:
        """The tables as arrays, not copied."""
        return [table.view for table in self.tables]
