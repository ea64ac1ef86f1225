"""The blocks of the KV cache: who has which, and which still hold a beginning that the next prompt may share."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Protocol

from rushlight.backends.batch import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = 0
"""The link that a chain of blocks begins with."""


class Holder(Protocol):
    """What blocks are held for."""

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens."""
        ...

    n_computed: int
    """Of how many the keys and values are in the blocks."""
    n_cached_blocks: int
    """How many of the blocks are known to the pool."""
    blocks: list[int]
    """In the order of positions."""


class BlockPool:
    """Hands out blocks by number, counts who holds each, and finds again the full ones by the tokens in them.

    A full block is known by its tokens and by its link: the block before it, and so by every token from position 0
    on. A dictionary compares both exactly, so prompts that differ never share. A known block that nobody holds is idle:
    it serves the next text that begins alike, until its memory is needed. The one that went idle first goes first, and
    of one text the last block before those that lead to it.

    Args:
        n_blocks: how many there are.
        max_evictable: how many evictable blocks are kept before they are reused instead of blocks never used. Memory is
            taken from the machine at a block's first use, so this bounds what past prompts cost.
        shares: whether blocks are known at all.
    """

    def __init__(self, n_blocks: int, max_evictable: int, *, shares: bool = True) -> None:
        self.n_blocks = n_blocks
        self.shares = shares
        self._max_evictable = max_evictable
        self.reset()

    def reset(self) -> None:
        """All blocks as if never used: nobody holds one, and none is known."""
        self._holders = [0] * self.n_blocks
        self._links: dict[tuple[int, tuple[int, ...]], int] = {}  # (the link before, tokens) -> block
        self._known: dict[int, tuple[int, tuple[int, tuple[int, ...]]]] = {}  # block -> (its own link, its key)
        self._new_link = count(ROOT + 1)
        self._evictable: OrderedDict[int, None] = OrderedDict()  # from the one that went idle first
        self._free: list[int] = []  # used before, and known no more
        self._n_fresh = self.n_blocks  # never used: the last ones

    @property
    def n_free(self) -> int:
        """How many can be had, those that lie idle among them."""
        return self._n_fresh + len(self._free) + len(self._evictable)

    @property
    def n_held(self) -> int:
        """How many are in use."""
        return self.n_blocks - self.n_free

    def match_prefix(self, ids: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known beginning of these tokens; takes none of them."""
        blocks: list[int] = []
        link = ROOT
        for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
            block = self._links.get((link, tuple(ids[start : start + BLOCK_SIZE])))
            if block is None:
                break
            blocks.append(block)
            link = self.prefix_id(block)
        return blocks

    def prefix_id(self, block: int) -> int:
        """What the next block of the chain calls a known block."""
        return self._known[block][0]

    def n_evictable_of(self, blocks: Iterable[int]) -> int:
        """How many of the blocks lie idle."""
        return sum(block in self._evictable for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Takes known blocks, for one holder more."""
        for block in blocks:
            self._holders[block] += 1
            self._evictable.pop(block, None)

    def allocate(self) -> int | None:
        """A block with nothing in it that anyone needs; None if all are held."""
        if self._free:
            block = self._free.pop()
        elif self._n_fresh and len(self._evictable) <= self._max_evictable:
            block = self.n_blocks - self._n_fresh
            self._n_fresh -= 1
        elif self._evictable:
            block, _ = self._evictable.popitem(last=False)
            del self._links[self._known.pop(block)[1]]
        else:
            return None
        self._holders[block] = 1
        return block

    def cache_block(self, link: int, tokens: Sequence[int], block: int) -> int:
        """Makes a block known that is now full of these tokens, after the block with that link.

        Returns:
            The block to go on with: where another is known by the same tokens, that one, since it holds the same bits;
            the holder's own is then released.
        """
        key = (link, tuple(tokens))
        other = self._links.get(key)
        if other is None:
            self._links[key] = block
            self._known[block] = (next(self._new_link), key)
            return block
        self.acquire([other])
        self.release([block])
        return other

    def cache_full_blocks(self, holder: Holder) -> None:
        """Makes the blocks known that a holder has filled, if this pool shares any."""
        while self.shares and (holder.n_cached_blocks + 1) * BLOCK_SIZE <= holder.n_computed:
            j = holder.n_cached_blocks
            link = self.prefix_id(holder.blocks[j - 1]) if j else ROOT
            tokens = holder.ids[j * BLOCK_SIZE : (j + 1) * BLOCK_SIZE]
            holder.blocks[j] = self.cache_block(link, tokens, holder.blocks[j])
            holder.n_cached_blocks += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Gives blocks back, in the order of their sequence."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._known:
                self._evictable[block] = None
            else:
                self._free.append(block)
