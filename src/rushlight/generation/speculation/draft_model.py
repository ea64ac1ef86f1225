"""A draft model: a smaller one that guesses what the model is going to say, for all sequences of a step together.

It is given the same text and draws with the same random numbers, so its guess is right whenever it thinks alike. Each
round of guesses is one forward over all sequences that are guessed for, as a step of the model itself is.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.runner import PREFILL_ROWS, ModelRunner
from rushlight.generation.sampling.sample_step import rows_of
from rushlight.generation.speculation.step_costs import StepCosts, count_accepted, update_acceptance_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sampling.sampler import Sampler


class Draft:
    """What a draft model guesses of one sequence.

    Args:
        drafts: those of the engine.
        sampler: the sequence's own.

    Attributes:
        ids: prompt and text, as they were last looked at.
        n_computed: of how many tokens, guesses after the text among them, the keys and values are in the cache.
        n_cached_blocks: of the blocks, how many are full, and known to the pool.
        blocks: of the drafts' cache.
        guessed: the last guesses.
    """

    def __init__(self, drafts: Drafts, sampler: Sampler) -> None:
        self.sampler = sampler
        self.ids: Sequence[int] = ()
        self.n_computed = 0
        self.n_cached_blocks = 0
        self.blocks: list[int] = []
        self.draft_tokens: list[int] = []
        self._drafts = drafts
        self._n_seen = 0
        self._rate = 0.8  # it was chosen because it is good

    def observe(self, ids: Sequence[int]) -> float:
        """As any proposer: learns how good the last guesses were; how likely each of the next is right."""
        right = count_accepted(self.draft_tokens, ids[self._n_seen :])
        self._rate = update_acceptance_rate(self._rate, right, len(self.draft_tokens))
        if not self.draft_tokens:
            self._rate += 0.01 * (1 - self._rate)  # what was given up is tried again
        self.n_computed = min(self.n_computed, self._n_seen + right, len(ids) - 1)
        self.ids, self._n_seen, self.draft_tokens = ids, len(ids), []
        return self._rate if len(ids) <= self._drafts.context_length else 0.0

    def forget(self) -> None:
        """Gives its blocks back."""
        self._drafts.release(self)


class Drafts:
    """A draft model with its cache, for the sequences of one engine.

    A sequence takes blocks when it is guessed for. When none is left, those that are not guessed for in this step give
    theirs back; when that is not enough, it goes without guesses. Prompts that begin alike share blocks.

    Args:
        model: what guesses.
        n_blocks: of its cache.
        max_evictable: how many may lie idle (see `BlockPool`).
    """

    def __init__(self, model: LanguageModel, n_blocks: int, max_evictable: int) -> None:
        self.context_length = model.context_length
        self.pool = BlockPool(n_blocks, max_evictable)
        self.costs = StepCosts()
        """Of one guess for each of so many sequences."""
        self._backend = model.backend
        self._runner = ModelRunner(model, n_blocks)
        self._holding: dict[Draft, None] = {}

    def propose(self, wanted: Mapping[Draft, int]) -> None:
        """Guesses at most so many tokens for each, into its `guessed`.

        A sequence of which the model has not seen all, because it is new here or went without guesses, is shown as
        much of it as goes into a step, and is guessed for when that was all.
        """
        left = PREFILL_ROWS
        feed: dict[Draft, Sequence[int]] = {}
        for draft, n in wanted.items():
            fits = len(draft.ids) <= self.context_length
            if left and fits and self._hold(draft, min(len(draft.ids) + n - 1, self.context_length), wanted):
                feed[draft] = draft.ids[draft.n_computed : draft.n_computed + left]
                left -= len(feed[draft])
        while feed:
            feed = self._round(feed, wanted)

    def _round(self, feed: Mapping[Draft, Sequence[int]], wanted: Mapping[Draft, int]) -> dict[Draft, Sequence[int]]:
        """Feeds tokens to the model and takes a guess for each that has been shown all; what to feed next."""
        start = perf_counter()
        logits = self._runner.on_device([Chunk(ids, draft.n_computed, draft.blocks) for draft, ids in feed.items()])
        shown: dict[int, Draft] = {}  # all of it, by its row of the logits
        for row, (draft, ids) in enumerate(feed.items()):
            draft.n_computed += len(ids)
            if draft.n_computed >= len(draft.ids):
                shown[row] = draft
        if not shown:
            return {}
        draws = [draft.sampler.row(draft.n_computed) for draft in shown.values()]
        tokens = self._backend.sample(rows_of(self._backend, logits, list(shown)), draws)
        if sum(map(len, feed.values())) <= 2 * len(feed):  # what it has to catch up with is no guess's cost
            self.costs.record(len(feed), perf_counter() - start)
        following: dict[Draft, Sequence[int]] = {}
        for draft, token in zip(shown.values(), tokens, strict=True):
            if token < 0:  # no guess is as good as a wrong one
                continue
            draft.draft_tokens.append(token)
            if len(draft.draft_tokens) < wanted[draft] and draft.n_computed < self.context_length:
                following[draft] = [token]
        return following

    def release(self, draft: Draft) -> None:
        """Gives the blocks of a sequence back."""
        self._holding.pop(draft, None)
        blocks, draft.blocks = draft.blocks, []
        draft.n_computed = draft.n_cached_blocks = 0
        self.pool.release(blocks)

    def reset(self, drafts: Iterable[Draft]) -> None:
        """Takes all blocks back, whatever state they are in; of these sequences, and from whoever holds one."""
        for draft in (*drafts, *self._holding):
            draft.blocks, draft.n_computed, draft.n_cached_blocks = [], 0, 0
        self._holding = {}
        self.pool.reset()

    def _hold(self, draft: Draft, end: int, wanted: Mapping[Draft, int]) -> bool:
        """Takes the blocks for positions up to `end`; False, and it holds none, if there are not as many."""
        if not draft.blocks:
            draft.blocks = self.pool.match_prefix(draft.ids[:-1])
            self.pool.acquire(draft.blocks)
            draft.n_cached_blocks = len(draft.blocks)
            draft.n_computed = draft.n_cached_blocks * BLOCK_SIZE
            self._holding[draft] = None
        else:
            self.pool.cache_full_blocks(draft)
        for _ in range(-(-end // BLOCK_SIZE) - len(draft.blocks)):
            while (block := self.pool.allocate()) is None:
                other = next((other for other in self._holding if other not in wanted), None)
                self.release(draft if other is None else other)
                if other is None:
                    return False
            draft.blocks.append(block)
        return True
