"""Running estimates of step times, by number of rows, and of acceptance rates."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LEARNING_RATE = 0.2

FORGET_STEPS = 256
"""A measurement is dropped after this many steps, so that it is repeated."""

ROW_SHARE = 0.1
"""The assumed cost of an additional row, as a share of a step, where none was measured."""


class StepCosts:
    """Recent step times in seconds, by number of rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._recorded: dict[int, int] = {}  # number of rows -> step; the most recent comes last
        self._n_steps = 0

    def record(self, n_rows: int, seconds: float) -> None:
        """Adds the time of a step."""
        self._n_steps += 1
        # Bounded, so that one outlier (an interrupted step, a first one) does not dominate hundreds of steps.
        before = self.estimate(n_rows) if self._seconds else seconds
        self._seconds[n_rows] = before + LEARNING_RATE * (min(seconds, 3 * before) - before)
        self._recorded.pop(n_rows, None)
        self._recorded[n_rows] = self._n_steps
        while self._n_steps - self._recorded[oldest := next(iter(self._recorded))] > FORGET_STEPS:
            del self._seconds[oldest], self._recorded[oldest]

    def is_measured(self, n_rows: int) -> bool:
        """Whether a step of `n_rows` rows was measured recently."""
        return n_rows in self._seconds

    def estimate(self, n_rows: int) -> float:
        """The time of a step: interpolated between measurements, and extrapolated by ROW_SHARE per row.

        0 before the first measurement, so that one will be made.
        """
        if n_rows in self._seconds:
            return self._seconds[n_rows]
        if not self._seconds:
            return 0.0
        measured = sorted(self._seconds)
        at = bisect(measured, n_rows)
        if at == 0:
            return self._seconds[measured[0]]
        low = measured[at - 1]
        if at == len(measured):
            return self._seconds[low] + (n_rows - low) * ROW_SHARE * self._seconds[measured[0]]
        high = measured[at]
        share = (n_rows - low) / (high - low)
        return self._seconds[low] * (1 - share) + self._seconds[high] * share


def count_accepted(draft_tokens: Sequence[int], tokens: Sequence[int]) -> int:
    """The number of draft tokens before the first that differs from the sampled tokens."""
    n = 0
    for draft_token, token in zip(draft_tokens, tokens, strict=False):
        if draft_token != token:
            break
        n += 1
    return n


def update_acceptance_rate(rate: float, n_accepted: int, n_drafted: int) -> float:
    """A moving average of the share of accepted draft tokens; those after a rejected one do not count."""
    rate = 1 - (1 - rate) * (1 - LEARNING_RATE) ** n_accepted
    return rate if n_accepted == n_drafted else rate * (1 - LEARNING_RATE)
