"""A draft model: a smaller model that proposes draft tokens for all sequences of a step in one batch.

It gets the same tokens and samples with the same random numbers as the target model, so its tokens are accepted where
the two models agree. Each round of draft tokens is one forward over all sequences that get draft tokens.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS, Chunk
from rushlight.generation.block_table import SequenceBlocks
from rushlight.generation.runner import ModelRunner
from rushlight.generation.sampling.sample_step import rows_of
from rushlight.generation.speculation.step_costs import StepCosts, count_accepted, update_acceptance_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from rushlight.generation.block_pool import BlockPool
    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sampling.sampler import Sampler
    from rushlight.generation.sequence import SequenceState

INITIAL_RATE = 0.8
"""The assumed acceptance rate of a sequence's first draft tokens: users select a draft model that predicts well."""

RECOVERY = 0.01
"""In a step without draft tokens the rate moves this fraction towards 1, so that drafting is retried."""


class DraftState:
    """The state of a sequence in the draft model.

    Attributes:
        ids: prompt and output at the last observation.
        n_computed: tokens whose keys and values are in the draft model's cache, including accepted draft tokens.
        blocks: its blocks in the draft model's cache.
        draft_tokens: the draft tokens that were proposed last.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.ids: Sequence[int] = ()
        self.n_computed = 0
        self.blocks = SequenceBlocks()
        self.draft_tokens: list[int] = []
        self._n_observed = 0
        self._rate = INITIAL_RATE

    def observe(self, ids: Sequence[int]) -> float:
        """Takes prompt and output so far; returns the expected acceptance rate of the next draft token."""
        n_accepted = count_accepted(self.draft_tokens, ids[self._n_observed :])
        self._rate = update_acceptance_rate(self._rate, n_accepted, len(self.draft_tokens))
        if not self.draft_tokens:
            self._rate += RECOVERY * (1 - self._rate)
        # Keys and values of rejected draft tokens are recomputed in place.
        self.n_computed = min(self.n_computed, self._n_observed + n_accepted, len(ids) - 1)
        self.ids, self._n_observed, self.draft_tokens = ids, len(ids), []
        return self._rate


class DraftModelProposer:
    """A draft model with a KV cache for the sequences of one engine.

    A sequence gets blocks when it first gets draft tokens. If none are available, sequences without draft tokens in
    this step lose theirs; if that is not enough, the sequence gets no draft tokens. Equal prefixes share blocks.

    Args:
        model: the draft model.
        pool: the blocks of its cache.

    Attributes:
        costs: the times of a round, by number of sequences.
        context_length: the most tokens of a sequence in the draft model.
        pool: the blocks of its cache.
    """

    def __init__(self, model: LanguageModel, pool: BlockPool) -> None:
        self.context_length = model.context_length
        self.pool = pool
        self.costs = StepCosts()
        self._backend = model.backend
        self._runner = ModelRunner(model, [part.n_blocks for part in pool.parts])
        self._states: dict[SequenceState, DraftState] = {}
        self._with_blocks: dict[DraftState, None] = {}

    @property
    def round_s(self) -> Callable[[int], float]:
        return self.costs.estimate

    def observe(self, sequence: SequenceState) -> float:
        state = self._states.get(sequence)
        if state is None:
            state = self._states[sequence] = DraftState(sequence.sampler)
        rate = state.observe(sequence.ids)
        return rate if len(sequence.ids) <= self.context_length else 0.0

    def propose(self, limits: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """As in `Proposer`.

        If the draft model has not computed all tokens of a sequence, because it is new or had no draft tokens for a
        while, this computes as many of them as fit in one step; draft tokens follow once it has caught up.
        """
        wanted = {self._states[sequence]: n for sequence, n in limits.items()}
        left = PREFILL_ROWS
        feed: dict[DraftState, Sequence[int]] = {}
        for state, n in wanted.items():
            fits = len(state.ids) <= self.context_length
            if left and fits and self._allocate(state, min(len(state.ids) + n - 1, self.context_length), wanted):
                feed[state] = state.ids[state.n_computed : state.n_computed + left]
                left -= len(feed[state])
        while feed:
            feed = self._round(feed, wanted)
        return {sequence: self._states[sequence].draft_tokens for sequence in limits}

    def _round(
        self, feed: Mapping[DraftState, Sequence[int]], wanted: Mapping[DraftState, int]
    ) -> dict[DraftState, Sequence[int]]:
        """Computes tokens, and samples a draft token where all are computed; returns the tokens of the next round."""
        start = perf_counter()
        chunks = []
        for state, ids in feed.items():
            table, *others = state.blocks.views
            chunks.append(Chunk(ids, state.n_computed, table, other_blocks=others))
        logits = self._runner.on_device(chunks)
        complete: dict[int, DraftState] = {}  # by row of the logits
        for row, (state, ids) in enumerate(feed.items()):
            state.n_computed += len(ids)
            if state.n_computed >= len(state.ids):
                complete[row] = state
        if not complete:
            return {}
        rows = [state.sampler.row(state.n_computed) for state in complete.values()]
        tokens = self._backend.sample(rows_of(self._backend, logits, list(complete)), rows)
        if sum(map(len, feed.values())) <= 2 * len(feed):  # not the time of a round that catches up
            self.costs.record(len(feed), perf_counter() - start)
        following: dict[DraftState, Sequence[int]] = {}
        for state, token in zip(complete.values(), tokens, strict=True):
            if token < 0:  # no token could be sampled
                continue
            state.draft_tokens.append(token)
            if len(state.draft_tokens) < wanted[state] and state.n_computed < self.context_length:
                following[state] = [token]
        return following

    def forget(self, sequence: SequenceState) -> None:
        state = self._states.pop(sequence, None)
        if state is not None:
            self._release(state)

    def reset(self) -> None:
        self._states, self._with_blocks = {}, {}
        self.pool.reset()

    def _release(self, state: DraftState) -> None:
        self._with_blocks.pop(state, None)
        state.n_computed = 0
        self.pool.release(state.blocks)

    def _allocate(self, state: DraftState, end: int, wanted: Collection[DraftState]) -> bool:
        """Allocates the blocks for positions up to `end`; if there are not enough, releases all and returns False."""
        if not state.blocks.tables:
            state.blocks = self.pool.start(self.pool.match_prefix(state.ids[:-1]))
            state.n_computed = state.blocks.n_cached * BLOCK_SIZE
            self._with_blocks[state] = None
        else:
            self.pool.commit(state.blocks, state.ids, state.n_computed)
        while not self.pool.grow(state.blocks, end):
            other = next((other for other in self._with_blocks if other not in wanted), None)
            self._release(state if other is None else other)
            if other is None:
                return False
        return True
