"""Which rows the next step computes: who may begin, who goes on, and who gives way when the blocks run out."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING

from rushlight.backends.batch import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection

    from rushlight.generation.block_pool import BlockPool
    from rushlight.generation.sequence import SequenceState

MIXED_ROWS = 64
"""Tokens of prompts in a step while texts are being written: theirs are then held up by little."""

SCORED_ROWS = 64
"""Tokens in a step of a prompt whose every logit is wanted: they are V numbers a row."""

ARRIVAL = attrgetter("arrival")


class Scheduler:
    """Continuous batching (Yu et al., "Orca", OSDI 2022) over blocks (Kwon et al., "PagedAttention", SOSP 2023).

    Sequences begin in the order in which they arrived, as soon as there are blocks for all tokens that they have. A
    decoding sequence has a row in every step; beside them go some tokens of prompts, the oldest first.

    When a sequence needs one block more and none is left, the youngest gives way: it loses its blocks, waits at its old
    place in the queue, and is computed again, to the same bits. So blocks are never kept for tokens that may not come,
    and the oldest goes on in every step. A sequence whose reader does not read holds up nobody: it takes no row, and it
    is the first to give way.

    Args:
        pool: the blocks.
        max_sequences: at most so many in a step.
        max_rows: at most so many tokens of prompts in a step.
    """

    def __init__(self, pool: BlockPool, max_sequences: int, max_rows: int) -> None:
        self.pool = pool
        self.max_rows = max_rows
        self.max_sequences = max_sequences
        self.waiting: list[SequenceState] = []  # both in the order of arrival
        self.running: list[SequenceState] = []

    def add(self, sequence: SequenceState) -> None:
        """Queues a new sequence."""
        insort(self.waiting, sequence, key=ARRIVAL)

    def remove(self, sequence: SequenceState) -> None:
        """Takes a sequence out, whatever it is doing, and its blocks back."""
        for group in (self.running, self.waiting):
            if sequence in group:
                group.remove(sequence)
        self._release(sequence)

    def restart(self, sequences: Collection[SequenceState]) -> None:
        """Begins again with these, from their first token: the same bits."""
        self.pool.reset()
        for sequence in sequences:
            sequence.blocks = []
            sequence.n_cached_blocks = sequence.n_computed = 0
        self.running = []
        self.waiting = sorted((s for s in sequences if not s.done), key=ARRIVAL)

    def next_rows(self) -> dict[SequenceState, int]:
        """The sequences of the next step, each with how many of its next tokens are fed; their blocks are there."""
        self._admit()
        active = [s for s in self.running if s.runnable][: self.max_sequences]
        rows = {s: 1 for s in active if s.n_pending == 1}
        left = min(self.max_rows, MIXED_ROWS) if rows else self.max_rows
        for s in active:
            if s.n_pending > 1 and left > 0:
                rows[s] = min(s.n_pending, left, SCORED_ROWS if s.scores_prompt else left)
                left -= rows[s]
        for s in active:
            if s in rows:
                self._grow(s, rows)
        return rows

    def _admit(self) -> None:
        waiting = [s for s in self.waiting if s.runnable]
        n_active = sum(s.runnable for s in self.running) if waiting else 0
        for sequence in waiting:
            if n_active >= self.max_sequences:
                return
            found = [] if sequence.scores_prompt else self.pool.match_prefix(sequence.ids[:-1])
            if self._another_computes(sequence, (len(found) + 1) * BLOCK_SIZE):
                continue  # in a step or two they will be there to share
            # One position more than there are tokens: the first that is chosen will stand there.
            missing = sequence.n_blocks_for(min(len(sequence.ids) + 1, sequence.end)) - len(found)
            if not self._make_room(missing, found):
                return
            self.pool.acquire(found)
            sequence.blocks = found + [block for _ in range(missing) if (block := self.pool.allocate()) is not None]
            sequence.n_cached_blocks = len(found)
            sequence.n_computed = len(found) * BLOCK_SIZE
            if len(sequence.ids) == sequence.n_prompt:
                sequence.n_cached = sequence.n_computed
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=ARRIVAL)
            n_active += 1

    def _another_computes(self, sequence: SequenceState, end: int) -> bool:
        """Whether a running sequence is about to fill a block with the same tokens up to `end`."""
        if end >= len(sequence.ids) or sequence.scores_prompt or not self.pool.shares:
            return False
        return any(
            s.n_computed < end <= len(s.ids) and s.runnable and s.ids[:end] == sequence.ids[:end] for s in self.running
        )

    def _make_room(self, n_blocks: int, found: list[int]) -> bool:
        """Whether so many blocks can be had beside those found; those whose readers do not read give way for it."""
        unread = [s for s in self.running if not s.runnable]
        while self.pool.n_free - self.pool.n_evictable_of(found) < n_blocks:
            if not unread:
                return False
            self._preempt(unread.pop())
        return True

    def _grow(self, sequence: SequenceState, rows: dict[SequenceState, int]) -> None:
        """Takes the blocks for the rows of a sequence; without enough it has none in this step."""
        for _ in range(sequence.n_blocks_for(sequence.n_computed + rows[sequence])):
            while (block := self.pool.allocate()) is None:
                unread = [s for s in self.running if not s.runnable]
                victim = (unread or self.running)[-1]
                rows.pop(victim, None)
                self._preempt(victim)
                if victim is sequence:
                    return
            sequence.blocks.append(block)

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.n_cached_blocks = sequence.n_computed = 0
