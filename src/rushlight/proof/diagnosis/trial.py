"""A place where a port and its recording part, and whether a formula makes what either has there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.proof.compare import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ITS_INPUT", "Floats", "Source", "Trial"]

ITS_INPUT = "its input"
"""The name of what the module itself was called with."""
Floats = Any  # NDArray of float64


class Source(NamedTuple):
    """A recorded array that a formula may begin with, and what to call it."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class Trial:
    """A place where the port and the recording part.

    Attributes:
        found, recorded: what the port has there, and what was recorded; of one shape.
        sources: what was recorded before, of the same module: its input and what the modules inside returned.
        elsewhere: arrays of the same shape that were recorded anywhere.
        tolerance: relative; what fits to twice that is taken for equal.
    """

    found: NDArray[Any]
    recorded: NDArray[Any]
    sources: Sequence[Source]
    elsewhere: Sequence[Source]
    tolerance: float

    def fits(self, candidate: Floats, target: Floats) -> bool:
        return candidate.shape == target.shape and distance(candidate, target).within(2 * self.tolerance)
