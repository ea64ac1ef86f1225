"""Guesses of the next tokens, checked by the model as rows of one step: several tokens for little more than one costs.

A guess is right when it is the very token that the sampler chooses from the model's logits at that place, with the
settings, the seed and the position it has there. So the text never changes, greedy or sampled (Leviathan et al.,
arXiv:2211.17192, keep the distribution; here each token stays the same). How many tokens are worth a guess follows from
how often guesses were right lately, and from what steps of so many rows were measured to take.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from rushlight.generation.suffixes import SuffixIndex

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Ids

    from rushlight.generation.context import Context
    from rushlight.generation.sampler import Sampler
    from rushlight.generation.sequence import Sequence

MAX_GUESSES = 15
"""Of one sequence in a step."""

LEAST_GAIN = 1.05
"""Guesses must promise to be so much faster: what is measured is noisy."""

LEAST_LIKELIHOOD = 0.05
"""A guess that is right more seldom is not worth a row, whatever it costs."""

ROWS_AHEAD = 4
"""So many rows more are looked at when one does not pay: some kernels take rows in groups."""

LEARNING_RATE = 0.2

FORGET_STEPS = 256
"""A cost that was measured longer ago is measured again."""

ROW_SHARE = 0.1
"""What one more row is taken to cost, of a step, before it was measured."""


class Guesser(Protocol):
    """One way to guess, for one sequence."""

    seconds: float
    """What a guess takes."""

    def look(self, ids: Ids[int]) -> float:
        """Learns from prompt and text so far how good the last guesses were; how likely each of the next is right."""
        ...

    def guess(self, n: int) -> list[int]:
        """At most n tokens that may come next."""
        ...


class PromptLookup:
    """Guesses that the text goes on as it did after the longest end of it that stood before (Saxena, "Prompt lookup
    decoding", 2023). A text that repeats itself is guessed beyond its own end.
    """

    seconds = 0.0
    _LENGTHS = (1, 2, 4, 8)
    """Matches are counted apart by length: the longer, the surer."""

    def __init__(self) -> None:
        self._index = SuffixIndex()
        self._rates = [0.0] * (len(self._LENGTHS) + 1)
        self._kind = 0
        self._guessed: list[int] = []

    def look(self, ids: Ids[int]) -> float:
        new = ids[len(self._index.ids) :]
        self._rates[self._kind] = _learned(self._rates[self._kind], _n_right(self._guessed, new), len(self._guessed))
        for token in new:
            self._index.append(token)
        length, _ = self._index.match()
        self._kind = bisect(self._LENGTHS, length)
        self.guess(1)  # whether it comes true costs nothing to see
        return self._rates[self._kind] if length else 0.0

    def guess(self, n: int) -> list[int]:
        ids = self._index.ids
        length, end = self._index.match()
        self._guessed = []
        for i in range(end, end + n if length else end):
            self._guessed.append(ids[i] if i < len(ids) else self._guessed[i - len(ids)])
        return self._guessed


class Draft:
    """Guesses what a smaller model says, drawn with the same random numbers.

    Args:
        context: the smaller model, fresh.
        capacity: the most tokens that it can be given.
        sampler: the sequence's own.
    """

    def __init__(self, context: Context, capacity: int, sampler: Sampler) -> None:
        self.seconds = 0.0
        self._context = context
        self._capacity = capacity
        self._sampler = sampler
        self._rate = 0.8  # it was chosen because it is good
        self._ids: Ids[int] = ()
        self._guessed: list[int] = []

    def look(self, ids: Ids[int]) -> float:
        n_right = _n_right(self._guessed, ids[len(self._ids) :])
        self._rate = _learned(self._rate, n_right, len(self._guessed))
        if not self._guessed:
            self._rate += 0.01 * (1 - self._rate)  # what was given up is tried again
        self._context.length = min(self._context.length, len(self._ids) + n_right)
        self._ids, self._guessed = list(ids), []
        return self._rate if len(ids) <= self._capacity else 0.0

    def guess(self, n: int) -> list[int]:
        start = perf_counter()
        n = min(n, self._capacity - len(self._ids) + 1)  # the last guess is not fed
        feed = self._ids[self._context.length :]
        for _ in range(n):
            logits = self._context.feed(feed)[-1]
            token = self._sampler.peek(logits, self._context.length)
            self._guessed.append(token)
            feed = [token]
        elapsed_s = (perf_counter() - start) / n
        self.seconds += LEARNING_RATE * (elapsed_s - self.seconds) if self.seconds else elapsed_s
        return self._guessed


class StepCosts:
    """What steps of so many rows took, in seconds, as it was measured lately."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}
        self._n_steps = 0

    def measured(self, n_rows: int, seconds: float) -> None:
        """Takes the time of a step."""
        self._n_steps += 1
        # One step that was interrupted, or the first of its kind, is not to decide for the next hundreds.
        before = self.estimate(n_rows) if self._seconds else seconds
        self._seconds[n_rows] = before + LEARNING_RATE * (min(seconds, 3 * before) - before)
        self._measured[n_rows] = self._n_steps
        for stale in [n for n, at in self._measured.items() if self._n_steps - at > FORGET_STEPS]:
            del self._seconds[stale], self._measured[stale]

    def knows(self, n_rows: int) -> bool:
        """Whether such a step was measured lately."""
        return n_rows in self._seconds

    def estimate(self, n_rows: int) -> float:
        """What a step takes: between two that were measured on the line, beyond them by ROW_SHARE a row."""
        known = sorted(self._seconds)
        at = bisect(known, n_rows)
        if at == 0:
            return self._seconds[known[0]]
        low = known[at - 1]
        if at == len(known):
            return self._seconds[low] + (n_rows - low) * ROW_SHARE * self._seconds[known[0]]
        high = known[at]
        share = (n_rows - low) / (high - low)
        return self._seconds[low] * (1 - share) + self._seconds[high] * share


class Speculation:
    """Decides what is guessed in the steps of an engine."""

    def __init__(self) -> None:
        self.costs = StepCosts()

    def guesses(self, sequences: Ids[Sequence]) -> dict[Sequence, list[int]]:
        """For each decoding sequence of a step, the tokens to be checked beside its next row; none for most texts."""
        likelihoods, guessers = [], []
        for sequence in sequences:
            likelihood, guesser = max(
                ((guesser.look(sequence.ids), guesser) for guesser in sequence.guessers),
                key=lambda pair: pair[0],
                default=(0.0, None),
            )
            likelihoods.append(likelihood)
            guessers.append(guesser)
        if not any(likelihoods) and not any(sequence.sampler.params.speculate for sequence in sequences):
            return {}
        counts: Counter[int] = Counter()
        if self.costs.knows(len(sequences)):
            seconds = [0.0 if guesser is None else guesser.seconds for guesser in guessers]
            limits = [sequence.n_spare for sequence in sequences]
            counts = worthwhile(likelihoods, limits, seconds, self.costs.estimate)
        guessed = {}
        for i, (sequence, guesser) in enumerate(zip(sequences, guessers, strict=True)):
            always = sequence.sampler.params.speculate
            n = min(MAX_GUESSES, sequence.n_spare) if always else counts[i]
            if guesser is not None and n and (tokens := guesser.guess(n)):
                guessed[sequence] = tokens
        return guessed


def worthwhile(
    likelihoods: Ids[float], limits: Ids[int], guess_s: Ids[float], step_s: Callable[[int], float]
) -> Counter[int]:
    """How many tokens to guess of each sequence, so that a step brings the most tokens a second.

    If each guess is right with likelihood p, the j-th counts with pʲ: so the best rows are taken from all sequences, as
    long as they pay.

    Args:
        likelihoods: of each sequence.
        limits: the most guesses of each.
        guess_s: the seconds that a guess takes.
        step_s: the seconds that a step of so many rows takes.
    """
    n = len(likelihoods)
    rows = sorted(
        (
            (likelihood**j, i)
            for i, (likelihood, limit) in enumerate(zip(likelihoods, limits, strict=True))
            for j in range(1, min(limit, MAX_GUESSES) + 1)
            if likelihood**j >= LEAST_LIKELIHOOD
        ),
        reverse=True,
    )
    tokens, guessing_s, n_best, best = float(n), 0.0, 0, LEAST_GAIN * n / step_s(n)
    for m, (gain, i) in enumerate(rows, 1):
        tokens += gain
        guessing_s += guess_s[i]
        rate = tokens / (step_s(n + m) + guessing_s)
        if rate > best:
            n_best, best = m, rate
        elif m - n_best >= ROWS_AHEAD:
            break
    return Counter(i for _, i in rows[:n_best])


def _n_right(guessed: Ids[int], tokens: Ids[int]) -> int:
    """How many guesses came true before the first that did not."""
    n = 0
    for guess, token in zip(guessed, tokens, strict=False):
        if guess != token:
            break
        n += 1
    return n


def _learned(rate: float, n_right: int, n_guessed: int) -> float:
    """The share of guesses that were right, the last ones counting most; those behind a wrong one prove nothing."""
    rate = 1 - (1 - rate) * (1 - LEARNING_RATE) ** n_right
    return rate if n_right == n_guessed else rate * (1 - LEARNING_RATE)
