"""The scheduler: selects the sequences of a step and the number of tokens of each, and preempts sequences."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.generation.block_table import SequenceBlocks
from rushlight.generation.runner import SCORED_ROWS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rushlight.generation.block_pool import BlockPool, Prefix
    from rushlight.generation.sequence import SequenceState

MIXED_ROWS = 64
"""The most prompt tokens in a step that also decodes, so that a long prompt delays decoding sequences only a little."""

ARRIVAL = attrgetter("arrival")


class Scheduler:
    """Continuous batching (Yu et al., "Orca", OSDI 2022) over blocks (Kwon et al., "PagedAttention", SOSP 2023).

    Sequences are admitted in the order of arrival, each as soon as there are blocks for all its tokens. A decoding
    sequence has a row in every step; prompt tokens fill the rest of the step, the oldest prompt first.

    When a sequence needs another block and none is available, the youngest sequence is preempted: it loses its
    blocks, returns to its place in the queue, and is recomputed later, to the same bits. So no block is reserved for
    tokens that may never be generated, and the oldest sequence makes progress in every step. A sequence whose consumer
    does not keep up delays no others: it has no rows, and it is the first to be preempted.

    Args:
        pool: the blocks.
        max_sequences: the most sequences in a step.
        max_prefill_rows: the most prompt tokens in a step.
        max_scored_rows: the most prompt tokens in a step of a sequence whose prompt log-probabilities are requested.

    Attributes:
        waiting: sequences that are not admitted yet, in the order of arrival.
        running: admitted sequences, in the order of arrival.
        n_cached_tokens: prompt tokens found in the prefix cache, of all sequences so far.
    """

    def __init__(
        self, pool: BlockPool, max_sequences: int, max_prefill_rows: int, max_scored_rows: int = SCORED_ROWS
    ) -> None:
        self.pool = pool
        self.max_prefill_rows = max_prefill_rows
        self.max_scored_rows = max_scored_rows
        self.max_sequences = max_sequences
        self.waiting: list[SequenceState] = []
        self.running: list[SequenceState] = []
        self.n_cached_tokens = 0
        self._prefixes: WeakKeyDictionary[SequenceState, tuple[int, Prefix]] = WeakKeyDictionary()

    def add(self, sequence: SequenceState) -> None:
        """Queues a sequence."""
        insort(self.waiting, sequence, key=ARRIVAL)

    def remove(self, sequence: SequenceState) -> None:
        """Removes a sequence, waiting or running, and releases its blocks."""
        for group in (self.running, self.waiting):
            if sequence in group:
                group.remove(sequence)
        self._release(sequence)

    def restart(self, sequences: Collection[SequenceState]) -> None:
        """Frees all blocks and queues these sequences to be recomputed from position 0, to the same bits."""
        self.pool.reset()
        for sequence in sequences:
            sequence.blocks = SequenceBlocks()
            sequence.n_computed = 0
        self.running = []
        self.waiting = sorted((s for s in sequences if not s.done), key=ARRIVAL)

    def next_rows(self) -> dict[SequenceState, int]:
        """The sequences of the next step, and how many tokens of each; their blocks are allocated."""
        self._admit()
        active = [s for s in self.running if s.runnable][: self.max_sequences]
        rows = {s: 1 for s in active if s.n_pending == 1}
        left = min(self.max_prefill_rows, MIXED_ROWS) if rows else self.max_prefill_rows
        for s in active:
            if s.n_pending > 1 and left > 0:
                rows[s] = min(s.n_pending, left, self.max_scored_rows if s.scores_prompt else left)
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
            prefix = self._prefix_of(sequence)
            if self._is_being_computed(sequence, (prefix.n_blocks + 1) * BLOCK_SIZE):
                continue  # that block can be shared in a step or two
            # One position more than it has tokens, for the first token to be sampled.
            missing = self.pool.n_missing(prefix, min(len(sequence.ids) + 1, sequence.end))
            if not self._make_room(prefix, missing):
                return
            sequence.blocks = self.pool.start(prefix, missing)
            sequence.n_computed = prefix.n_blocks * BLOCK_SIZE
            if len(sequence.ids) == sequence.n_prompt:
                sequence.n_cached = sequence.n_computed
                self.n_cached_tokens += sequence.n_cached
            self.waiting.remove(sequence)
            self._prefixes.pop(sequence, None)
            insort(self.running, sequence, key=ARRIVAL)
            n_active += 1

    def _prefix_of(self, sequence: SequenceState) -> Prefix:
        """The sequence's cached prefix, looked up again only when the cache has changed while it waits."""
        found = self._prefixes.get(sequence)
        if found is None or found[0] != self.pool.n_changes:
            prefix = self.pool.match_prefix([] if sequence.scores_prompt else sequence.ids[:-1])
            found = self._prefixes[sequence] = self.pool.n_changes, prefix
        return found[1]

    def _is_being_computed(self, sequence: SequenceState, end: int) -> bool:
        """Whether a running sequence will soon fill a block with the same tokens up to position `end`."""
        if end >= len(sequence.ids) or sequence.scores_prompt or not self.pool.has_prefix_cache:
            return False
        return any(
            s.n_computed < end <= len(s.ids) and s.runnable and s.ids[:end] == sequence.ids[:end] for s in self.running
        )

    def _make_room(self, prefix: Prefix, n_missing: Sequence[int]) -> bool:
        """Whether the missing blocks can be allocated besides the prefix; preempts sequences that are not runnable."""
        stalled = [s for s in self.running if not s.runnable]
        while not self.pool.has_room(prefix, n_missing):
            if not stalled:
                return False
            self._preempt(stalled.pop())
        return True

    def _grow(self, sequence: SequenceState, rows: dict[SequenceState, int]) -> None:
        """Allocates the blocks for a sequence's rows; removes its rows from the step if it is preempted."""
        while not self.pool.grow(sequence.blocks, sequence.n_computed + rows[sequence]):
            stalled = [s for s in self.running if not s.runnable]
            victim = (stalled or self.running)[-1]
            rows.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.blocks)
        sequence.n_computed = 0
