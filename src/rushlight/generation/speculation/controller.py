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
from rushlight.generation.speculation.step_costs import StepCosts, learned_rate, n_right
from rushlight.generation.speculation.suffix_index import SuffixIndex

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Ids

    from rushlight.generation.sequence import Sequence
    from rushlight.generation.speculation.draft_model import Drafts

MAX_GUESSES = 15
"""Of one sequence in a step."""

LEAST_GAIN = 1.05
"""Guesses must promise to be so much faster: what is measured is noisy."""

LEAST_LIKELIHOOD = 0.05
"""A guess that is right more seldom is not worth a row, whatever it costs."""

ROWS_AHEAD = 4
"""So many rows more are looked at when one does not pay: some kernels take rows in groups."""


class Guesser(Protocol):
    """One way to guess, for one sequence, at no cost."""

    def look(self, ids: Ids[int]) -> float:
        """Learns from prompt and text so far how good the last guesses were; how likely each of the next is right."""
        ...

    def guess(self, n: int) -> list[int]:
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
        self._guessed: list[int] = []

    def look(self, ids: Ids[int]) -> float:
        index, rates = self._index, self._rates
        new = ids[len(index.ids) :]
        if self._guessed:
            right = n_right(self._guessed, new)
            rates[self._kind] = learned_rate(rates[self._kind], right, len(self._guessed))
        for token in new:
            index.append(token)
        length, end = index.match()
        self._kind = bisect(self._LENGTHS, length)
        self._guessed = index.ids[end : end + 1] if length else []  # whether it comes true costs nothing to see
        return rates[self._kind] if length else 0.0

    def forget(self) -> None:
        self._index = SuffixIndex()

    def guess(self, n: int) -> list[int]:
        ids = self._index.ids
        length, end = self._index.match()
        self._guessed = []
        for i in range(end, end + n if length else end):
            self._guessed.append(ids[i] if i < len(ids) else self._guessed[i - len(ids)])
        return self._guessed


class Speculation:
    """Decides what is guessed in the steps of an engine.

    Args:
        drafts: the guesses of its draft model, if it has one.
    """

    def __init__(self, drafts: Drafts | None = None) -> None:
        self.costs = StepCosts()
        self._drafts = drafts

    def guesses(self, sequences: Ids[Sequence]) -> dict[Sequence, list[int]]:
        """For each decoding sequence of a step, the tokens to be checked beside its next row; none for most texts."""
        if not any(sequence.guessers for sequence in sequences):
            return {}
        likelihoods, guessers = [], []
        for sequence in sequences:
            looks = [(guesser.look(sequence.ids), guesser) for guesser in sequence.guessers]
            likelihood, guesser = max(looks, key=itemgetter(0)) if looks else (0.0, None)
            likelihoods.append(likelihood)
            guessers.append(guesser)
        always = [i for i, sequence in enumerate(sequences) if sequence.always_guesses]
        if not any(likelihoods) and not always:
            return {}
        limits = [sequence.n_spare for sequence in sequences]
        counts: Counter[int] = Counter()
        if self.costs.knows(len(sequences)):
            drafted = [isinstance(guesser, Draft) for guesser in guessers]
            draft_s = self._drafts.costs.estimate if self._drafts else None
            counts = worthwhile(likelihoods, limits, self.costs.estimate, drafted, draft_s)
        counts |= Counter({i: min(MAX_GUESSES, limits[i]) for i in always})
        guessed: dict[Sequence, list[int]] = {}
        wanted: dict[Draft, int] = {}
        for i, n in sorted(counts.items()):
            guesser = guessers[i]
            if isinstance(guesser, Draft):
                wanted[guesser] = n
                guessed[sequences[i]] = guesser.guessed  # filled below, for all of them together
            elif guesser is not None:
                guessed[sequences[i]] = guesser.guess(n)
        if self._drafts is not None:
            self._drafts.guess(wanted)
        return {sequence: tokens for sequence, tokens in guessed.items() if tokens}


def worthwhile(
    likelihoods: Ids[float],
    limits: Ids[int],
    step_s: Callable[[int], float],
    drafted: Ids[bool] = (),
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
    rows = [(-p, i, 1) for i, p in enumerate(likelihoods) if p >= LEAST_LIKELIHOOD and limits[i] > 0]
    heapify(rows)
    taken: list[int] = []  # whose rows
    ahead = max(ROWS_AHEAD, sum(drafted))  # the first row of a round pays for the draft's forward
    rounds: Counter[int] = Counter()
    tokens, guessing_s, n_best, best = float(n), 0.0, 0, LEAST_GAIN * n / step_s(n)
    while rows and len(taken) - n_best < ahead:
        loss, i, j = rows[0]
        gain = likelihoods[i] ** (j + 1)
        if j < min(limits[i], MAX_GUESSES) and gain >= LEAST_LIKELIHOOD:
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
