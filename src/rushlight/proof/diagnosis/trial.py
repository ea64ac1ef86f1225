"""A pair of arrays, the port's and the recorded one, with the sources from which a formula may explain them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.proof.compare import distance
from rushlight.proof.diagnosis.operations import Noted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ITS_INPUT", "Floats", "Source", "Trial"]

ITS_INPUT = "its input"
"""The name of the module's own input."""
Floats = Any  # NDArray of float64


class Source(NamedTuple):
    """A recorded array that a formula may use, with its name."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class Trial:
    """A difference between the port and the recording.

    Attributes:
        found, recorded: the port's array and the recorded one, of the same shape.
        sources: the module's recorded input, and the recorded outputs of its submodules.
        elsewhere: recorded outputs of other modules, of the same shape.
        tolerance: relative; arrays within twice the tolerance count as equal.
        later: recorded outputs of submodules that the port has not called yet, of the same shape.
        noted: the attention and the rotations that the module has computed.
        angles: the recorded rotary angles.
    """

    found: NDArray[Any]
    recorded: NDArray[Any]
    sources: Sequence[Source]
    elsewhere: Sequence[Source]
    tolerance: float
    later: Sequence[Source] = ()
    noted: Noted = field(default_factory=Noted)
    angles: Sequence[NDArray[Any]] = ()

    def fits(self, candidate: Floats, target: Floats) -> bool:
        return candidate.shape == target.shape and distance(candidate, target).within(2 * self.tolerance)

    def first_rows(self, n: int) -> Trial:
        """The same difference in the first n rows."""
        n_rows = len(self.found)

        def cut(sources: Sequence[Source]) -> list[Source]:
            return [Source(name, values[:n] if len(values) == n_rows else values) for name, values in sources]

        return replace(
            self,
            found=self.found[:n],
            recorded=self.recorded[:n],
            sources=cut(self.sources),
            elsewhere=cut(self.elsewhere),
            later=cut(self.later),
        )
