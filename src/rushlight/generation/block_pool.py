"""The blocks of the KV cache: allocation, reference counts, and the prefix cache, for every group of layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE, KVGroup
from rushlight.generation.block_table import NO_BLOCK, BlockTable, SequenceBlocks
from rushlight.generation.prefix_tree import ROOT_ID, PrefixTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Prefix(NamedTuple):
    """A cached prefix, as `BlockPool.match_prefix` finds it.

    Attributes:
        n_blocks: its length.
        id: its name.
        firsts: for each group of layers, the first block that its next row sees.
        blocks: for each group, the blocks from there to its end.
    """

    n_blocks: int
    id: int
    firsts: tuple[int, ...]
    blocks: tuple[list[int], ...]


class GroupPool:
    """The blocks of one group of layers, by number.

    A cached block without references is evictable: it serves prompts with the same prefix until its memory is needed.
    The block that became evictable first is evicted first, except that blocks behind a window come before all others.

    Args:
        n_blocks: the number of blocks.
        max_evictable: above this number of evictable blocks, one is evicted before a block that was never used is
            allocated. A block takes memory at its first use, so this bounds the memory of past prompts.
        on_evict: called with the prefix of a block that is evicted.
    """

    def __init__(self, n_blocks: int, max_evictable: int, on_evict: Callable[[int], None] = lambda _: None) -> None:
        self.n_blocks = n_blocks
        self.max_evictable = max_evictable
        self._on_evict = on_evict
        self._n_references = [0] * n_blocks
        self._cached: dict[int, int] = {}  # prefix -> the block that ends it
        self._prefixes: dict[int, int] = {}  # and back
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the one to evict first comes first
        self._free: list[int] = []  # used before, and not cached
        self._n_fresh = n_blocks  # never used: the last ones

    @property
    def n_evictable(self) -> int:
        """The number of cached blocks without references."""
        return len(self._evictable)

    @property
    def n_available(self) -> int:
        """The number of blocks that can be allocated: free or evictable."""
        return self._n_fresh + len(self._free) + len(self._evictable)

    def find(self, prefix: int) -> int | None:
        """The cached block that ends this prefix."""
        return self._cached.get(prefix)

    def n_evictable_of(self, blocks: Iterable[int]) -> int:
        """The number of these blocks that are evictable."""
        return sum(block in self._evictable for block in blocks)

    def acquire(self, block: int) -> None:
        """Adds a reference to a block that is cached or has one."""
        self._n_references[block] += 1
        self._evictable.pop(block, None)

    def allocate(self) -> int | None:
        """A block without content, evicted if need be, with one reference; None if all blocks are in use."""
        if self._free:
            block = self._free.pop()
        elif self._n_fresh and len(self._evictable) <= self.max_evictable:
            block = self.n_blocks - self._n_fresh
            self._n_fresh -= 1
        elif self._evictable:
            block, _ = self._evictable.popitem(last=False)
            prefix = self._prefixes.pop(block)
            del self._cached[prefix]
            self._on_evict(prefix)
        else:
            return None
        self._n_references[block] = 1
        return block

    def cache(self, prefix: int, block: int) -> tuple[int, bool]:
        """Caches a block as the end of a prefix.

        Returns:
            The block to continue with, and whether it is newly cached. If another block ends the same prefix, it holds
            the same bits: it gets the reference of `block`, which is released, and is returned.
        """
        other = self._cached.get(prefix)
        if other is None:
            self._cached[prefix], self._prefixes[block] = block, prefix
            return block, True
        self.acquire(other)
        self.release(block)
        return other, False

    def release(self, block: int, *, evict_first: bool = False) -> None:
        """Removes a reference from a block.

        Args:
            block: the block.
            evict_first: if it becomes evictable, it is evicted before all others.
        """
        self._n_references[block] -= 1
        if self._n_references[block]:
            return
        if block in self._prefixes:
            self._evictable[block] = None
            self._evictable.move_to_end(block, last=not evict_first)
        else:
            self._free.append(block)


class BlockPool:
    """Allocates the blocks of sequences in every group of layers, and finds cached blocks by their tokens.

    A full block is cached as the end of its prefix: all tokens from position 0 to its last. A prefix is matched where
    the next row finds all that it sees: every block in groups without a window, those in the window in the others.
    Blocks that fall behind a window are released while the sequence runs, and evicted before others. Not so those that
    were found in the cache, which more prompts may begin with, and those before the prompt's end, where the next prompt
    of a conversation continues.

    Args:
        groups: the groups of layers.
        n_blocks: the number of blocks of each.
        max_evictable: for each, as in `GroupPool`.
        max_rows: the most rows of a sequence in a step.
        has_prefix_cache: whether there is a prefix cache.

    Attributes:
        parts: the blocks of each group.
        n_changes: how often blocks were cached or evicted: until it changes, `match_prefix` finds the same.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        n_blocks: Sequence[int],
        max_evictable: Sequence[int],
        *,
        max_rows: int,
        has_prefix_cache: bool = True,
    ) -> None:
        self.groups = tuple(groups)
        self.has_prefix_cache = has_prefix_cache
        self._sizes = tuple(zip(n_blocks, max_evictable, strict=True))
        self._max_rows = max_rows
        self.n_changes = 0
        self.reset()

    def reset(self) -> None:
        """Frees all blocks and empties the prefix cache."""
        self.prefixes = PrefixTree()
        self.parts = [GroupPool(*sizes, self._evicted) for sizes in self._sizes]
        self.n_changes += 1

    @property
    def n_blocks(self) -> int:
        """The number of blocks in all groups; so of the other numbers."""
        return sum(part.n_blocks for part in self.parts)

    @property
    def n_evictable(self) -> int:
        """The number of cached blocks without references."""
        return sum(part.n_evictable for part in self.parts)

    @property
    def n_available(self) -> int:
        """The number of blocks that can be allocated: free or evictable."""
        return sum(part.n_available for part in self.parts)

    @property
    def n_held(self) -> int:
        """The number of blocks with references."""
        return self.n_blocks - self.n_available

    def n_blocks_for(self, length: int) -> list[int]:
        """The most blocks that a sequence of `length` positions holds at once, in each group."""
        return [group.n_blocks_for(length, self._max_rows) for group in self.groups]

    def match_prefix(self, ids: Sequence[int]) -> Prefix:
        """The longest cached prefix of these tokens; acquires none of its blocks."""
        names: list[int] = []
        for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE) if self.has_prefix_cache else ():
            tokens = tuple(ids[start : start + BLOCK_SIZE])
            name = self.prefixes.find(names[-1] if names else ROOT_ID, tokens)
            if name is None or any(
                group.window is None and part.find(name) is None
                for group, part in zip(self.groups, self.parts, strict=True)
            ):
                break
            names.append(name)
        n = len(names)
        while (missing := self._first_missing(names[:n])) is not None:
            n = missing  # any longer prefix needs this block too
        firsts = tuple(group.first_block(n * BLOCK_SIZE) for group in self.groups)
        blocks = tuple(
            [block for name in names[first:n] if (block := part.find(name)) is not None]
            for first, part in zip(firsts, self.parts, strict=True)
        )
        return Prefix(n, names[n - 1] if n else ROOT_ID, firsts, blocks)

    def _first_missing(self, names: Sequence[int]) -> int | None:
        """The first block that a row after this prefix sees in a group with a window, and that is not cached there."""
        n = len(names)
        missing = [
            j
            for group, part in zip(self.groups, self.parts, strict=True)
            if group.window is not None
            for j in range(group.first_block(n * BLOCK_SIZE), n)
            if part.find(names[j]) is None
        ]
        return min(missing, default=None)

    def n_missing(self, prefix: Prefix, length: int) -> list[int]:
        """The blocks to allocate for a sequence that begins with a cached prefix, in each group.

        Args:
            prefix: the prefix.
            length: the positions that it is about to compute. Where a window moves on meanwhile, blocks for the first
                of them are enough.
        """
        return [
            max(0, first + group.n_blocks_for(length - first * BLOCK_SIZE, self._max_rows) - prefix.n_blocks)
            for group, first in zip(self.groups, prefix.firsts, strict=True)
        ]

    def has_room(self, prefix: Prefix, n_missing: Sequence[int]) -> bool:
        """Whether as many blocks can be allocated besides those of the prefix."""
        return all(
            part.n_available - part.n_evictable_of(blocks) >= n
            for part, blocks, n in zip(self.parts, prefix.blocks, n_missing, strict=True)
        )

    def start(self, prefix: Prefix, n_missing: Sequence[int] | None = None) -> SequenceBlocks:
        """The blocks of a cached prefix, and as many more as there is room for (see `has_room`)."""
        for part, blocks in zip(self.parts, prefix.blocks, strict=True):
            for block in blocks:
                part.acquire(block)
        self.prefixes.hold(prefix.id)
        tables = [BlockTable(*each) for each in zip(prefix.firsts, prefix.blocks, strict=True)]
        for part, table, n in zip(self.parts, tables, n_missing or [0] * len(tables), strict=True):
            for _ in range(n):
                if (new := part.allocate()) is not None:
                    table.append(new)
        return SequenceBlocks(tables, prefix.n_blocks, prefix.id)

    def fork(self, blocks: SequenceBlocks, n_blocks: int) -> SequenceBlocks:
        """The first n blocks of a sequence for another one, which shares them; those behind a window are left out."""
        tables = []
        for part, table in zip(self.parts, blocks.tables, strict=True):
            shared = table.held[: n_blocks - table.first]
            for block in shared:
                part.acquire(block)
            tables.append(BlockTable(table.first, shared))
        return SequenceBlocks(tables)

    def grow(self, blocks: SequenceBlocks, length: int) -> bool:
        """Allocates the blocks for `length` positions; False if there are not enough, and those there are are kept."""
        for part, table in zip(self.parts, blocks.tables, strict=True):
            while len(table) * BLOCK_SIZE < length:
                block = part.allocate()
                if block is None:
                    return False
                table.append(block)
        return True

    def commit(self, blocks: SequenceBlocks, ids: Sequence[int], n_computed: int, n_prompt: int = 0) -> None:
        """Caches the blocks that a sequence has filled, and releases those behind its windows.

        Args:
            blocks: its blocks.
            ids: its tokens.
            n_computed: how many of them are computed, for good: its next row is at this position, or after it.
            n_prompt: the length of its prompt.
        """
        while self.has_prefix_cache and (blocks.n_cached + 1) * BLOCK_SIZE <= n_computed:
            self._cache_next(blocks, ids)
        for group, part, table in zip(self.groups, self.parts, blocks.tables, strict=True):
            end = min(group.first_block(n_computed), len(table))
            if table.first < end:
                kept = range(group.first_block((n_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE), n_prompt // BLOCK_SIZE)
                for j in range(table.first, end):
                    part.release(table[j], evict_first=j >= blocks.n_found and j not in kept)
                    table[j] = NO_BLOCK
                table.first = end

    def _cache_next(self, blocks: SequenceBlocks, ids: Sequence[int]) -> None:
        j = blocks.n_cached
        prefix = self.prefixes.hold_child(blocks.prefix, tuple(ids[j * BLOCK_SIZE : (j + 1) * BLOCK_SIZE]))
        for part, table in zip(self.parts, blocks.tables, strict=True):
            if table[j] != NO_BLOCK:
                table[j], is_new = part.cache(prefix, table[j])
                if is_new:
                    self.prefixes.hold(prefix)
                    self.n_changes += 1
        self.prefixes.drop(blocks.prefix)
        blocks.prefix, blocks.n_cached = prefix, j + 1

    def _evicted(self, prefix: int) -> None:
        self.prefixes.drop(prefix)
        self.n_changes += 1

    def release(self, blocks: SequenceBlocks) -> None:
        """Removes a sequence's references; of blocks that become evictable, its last is evicted first."""
        for part, table in zip(self.parts, blocks.tables, strict=False):
            for block in reversed(table.held):
                part.release(block)
        self.prefixes.drop(blocks.prefix)
        blocks.tables, blocks.n_cached, blocks.n_found, blocks.prefix = (), 0, 0, ROOT_ID
