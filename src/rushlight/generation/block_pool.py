"""The block pool of the KV cache: allocation, reference counts, and the prefix cache."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Protocol

from rushlight.backends.batch import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT_ID = 0
"""The id of the empty prefix: the parent id of a sequence's first block."""


class BlockTable(Protocol):
    """The part of a sequence that the pool reads and updates."""

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens."""
        ...

    n_computed: int
    """The number of tokens whose keys and values are in the blocks."""
    n_cached_blocks: int
    """The number of blocks, from the first, that are in the prefix cache."""
    blocks: list[int]
    """Block numbers, in the order of positions."""


class BlockPool:
    """Allocates blocks by number, counts references to them, and finds cached blocks by their tokens.

    A full block is cached under its tokens and its parent id, the id of the prefix before it, and so under all tokens
    from position 0 on. Keys are compared exactly, not by hash: different prompts never share a block. A cached block
    without references is evictable: it serves prompts with the same prefix until its memory is needed. The block that
    became evictable first is evicted first, and a sequence's last block before its earlier ones.

    Args:
        n_blocks: the number of blocks.
        max_evictable: above this number of evictable blocks, one is evicted before a block that was never used is
            allocated. A block takes memory at its first use, so this bounds the memory of past prompts.
        has_prefix_cache: whether there is a prefix cache.
    """

    def __init__(self, n_blocks: int, max_evictable: int, *, has_prefix_cache: bool = True) -> None:
        self.n_blocks = n_blocks
        self.has_prefix_cache = has_prefix_cache
        self._max_evictable = max_evictable
        self.reset()

    def reset(self) -> None:
        """Frees all blocks and empties the prefix cache."""
        self._n_references = [0] * self.n_blocks
        self._cached: dict[tuple[int, tuple[int, ...]], int] = {}  # (parent id, tokens) -> block
        self._keys: dict[int, tuple[int, tuple[int, tuple[int, ...]]]] = {}  # cached block -> (prefix id, its key)
        self._new_id = count(ROOT_ID + 1)
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the one to evict first comes first
        self._free: list[int] = []  # used before, and not cached
        self._n_fresh = self.n_blocks  # never used: the last ones

    @property
    def n_evictable(self) -> int:
        """The number of cached blocks without references."""
        return len(self._evictable)

    @property
    def n_available(self) -> int:
        """The number of blocks that can be allocated: free or evictable."""
        return self._n_fresh + len(self._free) + len(self._evictable)

    @property
    def n_held(self) -> int:
        """The number of blocks with references."""
        return self.n_blocks - self.n_available

    def match_prefix(self, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest cached prefix of these tokens; acquires none of them."""
        blocks: list[int] = []
        parent_id = ROOT_ID
        for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = self._cached.get((parent_id, tuple(ids[start : start + BLOCK_SIZE])))
            if block is None:
                break
            blocks.append(block)
            parent_id = self.prefix_id(block)
        return blocks

    def prefix_id(self, block: int) -> int:
        """The id of the prefix that a cached block ends: the parent id of the block after it."""
        return self._keys[block][0]

    def n_evictable_of(self, blocks: Iterable[int]) -> int:
        """The number of these blocks that are evictable."""
        return sum(block in self._evictable for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each of these cached blocks."""
        for block in blocks:
            self._n_references[block] += 1
            self._evictable.pop(block, None)

    def allocate(self) -> int | None:
        """A block without content, evicted if need be, with one reference; None if all blocks are in use."""
        if self._free:
            block = self._free.pop()
        elif self._n_fresh and len(self._evictable) <= self._max_evictable:
            block = self.n_blocks - self._n_fresh
            self._n_fresh -= 1
        elif self._evictable:
            block = self._evict()
        else:
            return None
        self._n_references[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        del self._cached[self._keys.pop(block)[1]]
        return block

    def cache_block(self, parent_id: int, tokens: Sequence[int], block: int) -> int:
        """Caches a block that these tokens have filled.

        Returns:
            The block to continue with. If another block is cached under the same tokens, it holds the same bits: it
            gets the reference of `block`, which is released, and is returned.
        """
        key = (parent_id, tuple(tokens))
        other = self._cached.get(key)
        if other is None:
            self._cached[key] = block
            self._keys[block] = (next(self._new_id), key)
            return block
        self.acquire([other])
        self.release([block])
        return other

    def cache_full_blocks(self, table: BlockTable) -> None:
        """Caches the blocks that a sequence has filled since the last call."""
        while self.has_prefix_cache and (table.n_cached_blocks + 1) * BLOCK_SIZE <= table.n_computed:
            j = table.n_cached_blocks
            parent_id = self.prefix_id(table.blocks[j - 1]) if j else ROOT_ID
            tokens = table.ids[j * BLOCK_SIZE : (j + 1) * BLOCK_SIZE]
            table.blocks[j] = self.cache_block(parent_id, tokens, table.blocks[j])
            table.n_cached_blocks += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Removes a reference from each of a sequence's blocks, which are in the order of positions."""
        for block in reversed(blocks):
            self._n_references[block] -= 1
            if self._n_references[block]:
                continue
            if block in self._keys:
                self._evictable[block] = None
            else:
                self._free.append(block)
