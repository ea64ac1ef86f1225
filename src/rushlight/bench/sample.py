"""Repeated measurements of one thing, and what is said of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Sample:
    """The values of at least one repeat, in the order they were taken.

    Machines drift and are shared: the median is what is quoted, and the extremes say how far to trust it.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def per(self, amount: float) -> Sample:
        """`amount` over each value: seconds become rates."""
        return Sample(tuple(amount / value for value in self.values))

    def to_json(self) -> dict[str, object]:
        return {"median": self.median, "min": self.least, "max": self.most, "values": list(self.values)}
