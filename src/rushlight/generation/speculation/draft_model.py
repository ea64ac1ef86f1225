"""A draft model: a smaller one that guesses what the model is going to say, for all sequences of a step together.

It is given the same text and draws with the same random numbers, so its guess is right whenever it thinks alike. Each
round of guesses is one forward over all sequences that are guessed for, as a step of the model itself is.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.runner import PREFILL_ROWS, Runner
from rushlight.generation.sampling.sample_step import rows_of
from rushlight.generation.speculation.step_costs import StepCosts, learned_rate, n_right

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rushlight.backends.batch import KVShape
    from rushlight.backends.protocol import Backend
    from rushlight.generation.runner import Forward
    from rushlight.generation.sampling.sampler import Sampler


class DraftModel(NamedTuple):
    """What guesses: the smaller model, the device it runs on, what it keeps of a position, and its context."""

    forward: Forward
    backend: Backend
    kv_shape: KVShape
    context_length: int

    @property
    def block_bytes(self) -> int:
        """What a block of its keys and values takes."""
        return self.backend.kv_block_bytes(self.kv_shape)


class Draft:
    """What a draft model guesses of one sequence.

    Args:
        drafts: those of the engine.
        sampler: the sequence's own.

    Attributes:
        ids: prompt and text, as they were last looked at.
        n_fed: of how many tokens, guesses after the text among them, the keys and values are in the cache.
        n_known: of the blocks, how many are full, and known to the pool.
        blocks: of the drafts' cache.
        guessed: the last guesses.
    """

    def __init__(self, drafts: Drafts, sampler: Sampler) -> None:
        self.sampler = sampler
        self.ids: Sequence[int] = ()
        self.n_fed = 0
        self.n_known = 0
        self.blocks: list[int] = []
        self.guessed: list[int] = []
        self._drafts = drafts
        self._n_seen = 0
        self._rate = 0.8  # it was chosen because it is good

    def look(self, ids: Sequence[int]) -> float:
        """As any guesser: learns how good the last guesses were; how likely each of the next is right."""
        right = n_right(self.guessed, ids[self._n_seen :])
        self._rate = learned_rate(self._rate, right, len(self.guessed))
        if not self.guessed:
            self._rate += 0.01 * (1 - self._rate)  # what was given up is tried again
        self.n_fed = min(self.n_fed, self._n_seen + right, len(ids) - 1)
        self.ids, self._n_seen, self.guessed = ids, len(ids), []
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
        n_idle: how many may lie idle (see `BlockPool`).
    """

    def __init__(self, model: DraftModel, n_blocks: int, n_idle: int) -> None:
        self.context_length = model.context_length
        self.pool = BlockPool(n_blocks, n_idle)
        self.costs = StepCosts()
        """Of one guess for each of so many sequences."""
        self._backend = model.backend
        self._run = Runner(model.forward, model.backend, model.kv_shape, n_blocks)
        self._holding: dict[Draft, None] = {}

    def guess(self, wanted: Mapping[Draft, int]) -> None:
        """Guesses at most so many tokens for each, into its `guessed`.

        A sequence of which the model has not seen all, because it is new here or went without guesses, is shown as
        much of it as goes into a step, and is guessed for when that was all.
        """
        left = PREFILL_ROWS
        feed: dict[Draft, Sequence[int]] = {}
        for draft, n in wanted.items():
            fits = len(draft.ids) <= self.context_length
            if left and fits and self._hold(draft, min(len(draft.ids) + n - 1, self.context_length), wanted):
                feed[draft] = draft.ids[draft.n_fed : draft.n_fed + left]
                left -= len(feed[draft])
        while feed:
            feed = self._round(feed, wanted)

    def _round(self, feed: Mapping[Draft, Sequence[int]], wanted: Mapping[Draft, int]) -> dict[Draft, Sequence[int]]:
        """Feeds tokens to the model and takes a guess for each that has been shown all; what to feed next."""
        start = perf_counter()
        logits = self._run.on_device([Chunk(ids, draft.n_fed, draft.blocks) for draft, ids in feed.items()])
        shown: dict[int, Draft] = {}  # all of it, by its row of the logits
        for row, (draft, ids) in enumerate(feed.items()):
            draft.n_fed += len(ids)
            if draft.n_fed >= len(draft.ids):
                shown[row] = draft
        if not shown:
            return {}
        draws = [draft.sampler.draw(draft.n_fed) for draft in shown.values()]
        tokens = self._backend.sample(rows_of(self._backend, logits, list(shown)), draws)
        if sum(map(len, feed.values())) <= 2 * len(feed):  # what it has to catch up with is no guess's cost
            self.costs.measured(len(feed), perf_counter() - start)
        following: dict[Draft, Sequence[int]] = {}
        for draft, token in zip(shown.values(), tokens, strict=True):
            if token < 0:  # no guess is as good as a wrong one
                continue
            draft.guessed.append(token)
            if len(draft.guessed) < wanted[draft] and draft.n_fed < self.context_length:
                following[draft] = [token]
        return following

    def release(self, draft: Draft) -> None:
        """Gives the blocks of a sequence back."""
        self._holding.pop(draft, None)
        blocks, draft.blocks = draft.blocks, []
        draft.n_fed = draft.n_known = 0
        self.pool.release(blocks)

    def reset(self, drafts: Iterable[Draft]) -> None:
        """Takes all blocks back, whatever state they are in; of these sequences, and from whoever holds one."""
        for draft in (*drafts, *self._holding):
            draft.blocks, draft.n_fed, draft.n_known = [], 0, 0
        self._holding = {}
        self.pool.reset()

    def _hold(self, draft: Draft, end: int, wanted: Mapping[Draft, int]) -> bool:
        """Takes the blocks for positions up to `end`; False, and it holds none, if there are not as many."""
        if not draft.blocks:
            draft.blocks = self.pool.find(draft.ids[:-1])
            self.pool.hold(draft.blocks)
            draft.n_known = len(draft.blocks)
            draft.n_fed = draft.n_known * BLOCK_SIZE
            self._holding[draft] = None
        else:
            self.pool.learn_full(draft)
        for _ in range(-(-end // BLOCK_SIZE) - len(draft.blocks)):
            while (block := self.pool.take()) is None:
                other = next((other for other in self._holding if other not in wanted), None)
                self.release(draft if other is None else other)
                if other is None:
                    return False
            draft.blocks.append(block)
        return True
