"""Repeated measurements of one quantity, and their statistics."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Repeats:
    """The values of one or more repeats, in the order of measurement.

    Quote the median; the range shows how far to trust it, since machines are shared and their speed drifts.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Repeats:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def max(self) -> float:
        return max(self.values)

    def per(self, amount: float) -> Repeats:
        """`amount` divided by each value: turns seconds into rates."""
        return Repeats(tuple(amount / value for value in self.values))

    def to_json(self) -> dict[str, object]:
        return {"median": self.median, "min": self.min, "max": self.max, "values": list(self.values)}
