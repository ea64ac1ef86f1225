"""The distance between two arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Distance", "distance", "oriented"]


class Distance(NamedTuple):
    """The distance of an array from the recorded one.

    Attributes:
        absolute: max |difference|.
        relative: absolute / max |recorded|.
        cosine: the cosine similarity of the two as vectors; 1 if both are zero.
        non_finite: the number of values that are NaN or infinite on one side only; if any, the other fields are NaN.
    """

    absolute: float
    relative: float
    cosine: float
    non_finite: int = 0

    def within(self, tolerance: float) -> bool:
        """Whether the relative error is at most `tolerance`; NaN never is."""
        return self.relative <= tolerance


def distance(found: NDArray[Any], recorded: NDArray[Any]) -> Distance:
    """The distance of two arrays of one shape, computed in float64."""
    a, b = np.asarray(found, np.float64).reshape(-1), np.asarray(recorded, np.float64).reshape(-1)
    finite = np.isfinite(a) & np.isfinite(b)
    # The same NaN or infinity on both sides is equal.
    n_non_finite = int((~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    if n_non_finite:
        return Distance(math.nan, math.nan, math.nan, n_non_finite)
    a, b = a[finite], b[finite]
    if not a.size:
        return Distance(0.0, 0.0, 1.0)
    absolute, largest = float(np.abs(a - b).max()), float(np.abs(b).max())
    relative = absolute / largest if largest else (0.0 if absolute == 0 else math.inf)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return Distance(absolute, relative, float(a @ b) / norms if norms else float(absolute == 0))


def oriented(recorded: NDArray[Any] | None, found: NDArray[Any]) -> NDArray[Any] | None:
    """A recorded array in the shape of the port's; None if no orientation fits.

    The port has (N, C). PyTorch's convolutions, and the code between them, have (C, N), which is transposed; a norm of
    every head has (N, H, D), or (H, N, D) after a transpose, which is flattened. Of several that fit, such as where N
    and C are equal, the closest is taken.
    """
    if recorded is None:
        return None
    ways = [recorded, recorded.T, recorded[None]]
    if recorded.ndim > 2 and found.ndim == 2:
        ways = [each.reshape(len(each), -1) for each in (recorded, recorded.swapaxes(0, 1))]
    fitting = [each for each in ways if each.shape == found.shape]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    # A distance that is not a number is the largest.
    return min(fitting, key=lambda each: (math.isnan(apart := distance(found, each).absolute), apart))
