"""What is learned while steps run: what they take, and how often guesses are right."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LEARNING_RATE = 0.2

FORGET_STEPS = 256
"""A cost that was measured longer ago is measured again."""

ROW_SHARE = 0.1
"""What one more row is taken to cost, of a step, before it was measured."""


class StepCosts:
    """What steps of so many rows took, in seconds, as it was measured lately."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}  # after how many steps; the one measured last comes last
        self._n_steps = 0

    def record(self, n_rows: int, seconds: float) -> None:
        """Takes the time of a step."""
        self._n_steps += 1
        # One step that was interrupted, or the first of its kind, is not to decide for the next hundreds.
        before = self.estimate(n_rows) if self._seconds else seconds
        self._seconds[n_rows] = before + LEARNING_RATE * (min(seconds, 3 * before) - before)
        self._measured.pop(n_rows, None)
        self._measured[n_rows] = self._n_steps
        while self._n_steps - self._measured[oldest := next(iter(self._measured))] > FORGET_STEPS:
            del self._seconds[oldest], self._measured[oldest]

    def is_measured(self, n_rows: int) -> bool:
        """Whether such a step was measured lately."""
        return n_rows in self._seconds

    def estimate(self, n_rows: int) -> float:
        """What a step takes: between two that were measured on the line, beyond them by ROW_SHARE a row.

        Nothing before there is a measure, so that there will be one.
        """
        if n_rows in self._seconds:
            return self._seconds[n_rows]
        if not self._seconds:
            return 0.0
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


def count_accepted(guessed: Sequence[int], tokens: Sequence[int]) -> int:
    """How many guesses came true before the first that did not."""
    n = 0
    for guess, token in zip(guessed, tokens, strict=False):
        if guess != token:
            break
        n += 1
    return n


def update_acceptance_rate(rate: float, right: int, n_drafted: int) -> float:
    """The share of guesses that were right, the last ones counting most; those after a wrong one prove nothing."""
    rate = 1 - (1 - rate) * (1 - LEARNING_RATE) ** right
    return rate if right == n_drafted else rate * (1 - LEARNING_RATE)
