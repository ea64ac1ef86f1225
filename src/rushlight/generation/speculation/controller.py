"""Guesses of the next tokens, checked by the model as rows of one step: several tokens for little more than one costs.

A guess is right when it is the very token that the sampler chooses from the model's logits at that place, with the
settings, the seed and the position it has there. So the text never changes, greedy or sampled (Leviathan et al.,
arXiv:2211.17192, keep the distribution; here each token stays the same). How many tokens are worth a guess follows from
how often guesses were right lately, and from what steps of so many rows were measured to take.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from heapq import heapify, heappop, heapreplace
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from rushlight.generation.speculation.draft_model import Draft
from rushlight.generation.speculation.step_costs import StepCosts, count_accepted, update_acceptance_rate
from rushlight.generation.speculation.suffix_index import SuffixIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rushlight.generation.sequence import SequenceState
    from rushlight.generation.speculation.draft_model import Drafts

MAX_DRAFT_TOKENS = 15
"""Of one sequence in a step."""

MIN_SPEEDUP = 1.05
"""Guesses must promise to be so much faster: what is measured is noisy."""

MIN_ACCEPTANCE_RATE = 0.05
"""A guess that is right more seldom is not worth a row, whatever it costs."""

LOOKAHEAD_ROWS = 4
"""So many rows more are looked at when one does not pay: some kernels take rows in groups."""


class Proposer(Protocol):
    """One way to guess, for one sequence, at no cost."""

    def observe(self, ids: Sequence[int]) -> float:
        """Learns from prompt and text so far how good the last guesses were; how likely each of the next is right."""
        ...

    def propose(self, n: int) -> list[int]:
        """At most n tokens that may come next."""
        ...

    def forget(self) -> None:
        """Gives back what it holds: no more will be asked."""
        ...


class PromptLookup:
    """Guesses that the text goes on as it did after the longest end of it that stood before (Saxena, "Prompt lookup
    decoding", 2023). A text that repeats itself is guessed beyond its own end.
    """

    _LENGTHS = (1, 2, 4, 8)
    """Matches are counted apart by length: the longer, the surer."""

    def __init__(self) -> None:
        self._index = SuffixIndex()
        self._rates = [0.0] * (len(self._LENGTHS) + 1)
        self._kind = 0
        self._draft_tokens: list[int] = []

    def observe(self, ids: Sequence[int]) -> float:
        index, rates = self._index, self._rates
        new = ids[len(index.ids) :]
        if self._draft_tokens:
            right = count_accepted(self._draft_tokens, new)
            rates[self._kind] = update_acceptance_rate(rates[self._kind], right, len(self._draft_tokens))
        for token in new:
            index.append(token)
        length, end = index.match()
        self._kind = bisect(self._LENGTHS, length)
        self._draft_tokens = index.ids[end : end + 1] if length else []  # whether it comes true costs nothing to see
        return rates[self._kind] if length else 0.0

    def forget(self) -> None:
        self._index = SuffixIndex()

    def propose(self, n: int) -> list[int]:
        ids = self._index.ids
        length, end = self._index.match()
        self._draft_tokens = []
        for i in range(end, end + n if length else end):
            self._draft_tokens.append(ids[i] if i < len(ids) else self._draft_tokens[i - len(ids)])
        return self._draft_tokens


class SpeculationController:
    """Decides what is guessed in the steps of an engine.

    Args:
        drafts: the guesses of its draft model, if it has one.
    """

    def __init__(self, drafts: Drafts | None = None) -> None:
        self.costs = StepCosts()
        self._drafts = drafts

    def draft(self, sequences: Sequence[SequenceState]) -> dict[SequenceState, list[int]]:
        """For each decoding sequence of a step, the tokens to be checked beside its next row; none for most texts."""
        if not any(sequence.proposers for sequence in sequences):
            return {}
        likelihoods, proposers = [], []
        for sequence in sequences:
            looks = [(proposer.observe(sequence.ids), proposer) for proposer in sequence.proposers]
            likelihood, proposer = max(looks, key=itemgetter(0)) if looks else (0.0, None)
            likelihoods.append(likelihood)
            proposers.append(proposer)
        always = [i for i, sequence in enumerate(sequences) if sequence.always_drafts]
        if not any(likelihoods) and not always:
            return {}
        limits = [sequence.n_spare for sequence in sequences]
        counts: Counter[int] = Counter()
        if self.costs.is_measured(len(sequences)):
            drafted = [isinstance(proposer, Draft) for proposer in proposers]
            draft_s = self._drafts.costs.estimate if self._drafts else None
            counts = plan_drafts(likelihoods, limits, self.costs.estimate, drafted, draft_s)
        counts |= Counter({i: min(MAX_DRAFT_TOKENS, limits[i]) for i in always})
        guessed: dict[SequenceState, list[int]] = {}
        wanted: dict[Draft, int] = {}
        for i, n in sorted(counts.items()):
            proposer = proposers[i]
            if isinstance(proposer, Draft):
                wanted[proposer] = n
                guessed[sequences[i]] = proposer.draft_tokens  # filled below, for all of them together
            elif proposer is not None:
                guessed[sequences[i]] = proposer.propose(n)
        if self._drafts is not None:
            self._drafts.propose(wanted)
        return {sequence: tokens for sequence, tokens in guessed.items() if tokens}


def plan_drafts(
    likelihoods: Sequence[float],
    limits: Sequence[int],
    step_s: Callable[[int], float],
    drafted: Sequence[bool] = (),
    draft_s: Callable[[int], float] | None = None,
) -> Counter[int]:
    """How many tokens to guess of each sequence, so that a step brings the most tokens a second.

    If each guess is right with likelihood p, the j-th counts with pʲ: so the best rows are taken from all sequences, as
    long as they pay. The j-th guesses of all that a draft model guesses for are one forward of it.

    Args:
        likelihoods: of each sequence.
        limits: the most guesses of each.
        step_s: the seconds that a step of so many rows takes.
        drafted: whether a draft model guesses for it; else guesses cost nothing.
        draft_s: the seconds that the draft model takes for a guess of so many sequences.
    """
    n = len(likelihoods)
    # The next row of each sequence, the likeliest first.
    rows = [(-p, i, 1) for i, p in enumerate(likelihoods) if p >= MIN_ACCEPTANCE_RATE and limits[i] > 0]
    heapify(rows)
    taken: list[int] = []  # whose rows
    ahead = max(LOOKAHEAD_ROWS, sum(drafted))  # the first row of a round pays for the draft's forward
    rounds: Counter[int] = Counter()
    tokens, guessing_s, n_best, best = float(n), 0.0, 0, MIN_SPEEDUP * n / step_s(n)
    while rows and len(taken) - n_best < ahead:
        loss, i, j = rows[0]
        gain = likelihoods[i] ** (j + 1)
        if j < min(limits[i], MAX_DRAFT_TOKENS) and gain >= MIN_ACCEPTANCE_RATE:
            heapreplace(rows, (-gain, i, j + 1))
        else:
            heappop(rows)
        taken.append(i)
        tokens -= loss
        if draft_s is not None and drafted[i]:
            guessing_s += draft_s(rounds[j] + 1) - (draft_s(rounds[j]) if rounds[j] else 0.0)
            rounds[j] += 1
        rate = tokens / (step_s(n + len(taken)) + guessing_s)
        if rate > best:
            n_best, best = len(taken), rate
    return Counter(taken[:n_best])
