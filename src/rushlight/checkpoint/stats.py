"""Statistics of tensors, in one pass over the data and bounded memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint.dtypes import WEIGHT_DTYPES, to_float32
from rushlight.checkpoint.float8 import FLOAT8_DTYPES, float8_to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.checkpoint.checkpoint import Tensor

__all__ = ["TensorStats", "measure", "tensor_stats"]

CHUNK_ELEMENTS = 1 << 20
"""Elements processed at once: at most 8 MiB as stored, and a few times that while summing."""

MEASURED = (*WEIGHT_DTYPES, *FLOAT8_DTYPES, "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
"""The dtypes with statistics. C64 has none, because complex numbers have no order."""


@dataclass(frozen=True, slots=True)
class TensorStats:
    """The statistics of the finite values of one tensor, and the number of other values.

    Attributes:
        min, max: exact; None if no value is finite.
        mean, std: summed in float64; the standard deviation is that of the population (divided by n). None if no value
            is finite, or if a sum of float64 values overflows.
        n_nan, n_inf: the number of NaN, and of infinities of either sign.
    """

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    n_nan: int
    n_inf: int

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON data."""
        return asdict(self)


def measure(tensors: Iterable[Tensor], advance: Callable[[int], object] = lambda _: None) -> dict[str, TensorStats]:
    """The statistics by name of every tensor with a dtype in `MEASURED`; other tensors are not read.

    Args:
        tensors: the tensors.
        advance: called with the number of bytes of each chunk that is done.

    Raises:
        SourceError: the checkpoint is remote.
        TruncatedError: a file has changed since it was opened.
    """
    stats = {}
    for tensor in tensors:
        if tensor.dtype in MEASURED:
            stats[tensor.name] = tensor_stats(tensor, advance)
        else:
            advance(tensor.nbytes)
    return stats


def tensor_stats(tensor: Tensor, advance: Callable[[int], object] = lambda _: None) -> TensorStats:
    """The statistics of one tensor. Chunks are combined by eq. 2.1 of Chan, Golub and LeVeque (1979).

    Raises:
        SourceError, TruncatedError: as `measure`.
    """
    import numpy as np

    low, high = math.inf, -math.inf
    n, mean, squares = 0, 0.0, 0.0  # `squares`: the sum of squared deviations from `mean`
    n_nan = n_inf = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for stored in tensor.chunks(CHUNK_ELEMENTS):
            match tensor.dtype:
                case "BF16":
                    values = to_float32(stored, "BF16")
                case "BOOL":
                    values = stored.view(np.uint8)
                case dtype if dtype in FLOAT8_DTYPES:
                    values = float8_to_float32(stored, dtype)
                case _:
                    values = stored
            if values.dtype.kind == "f":
                finite = np.isfinite(values)
                nans = int(np.count_nonzero(np.isnan(values)))
                n_nan += nans
                n_inf += int(values.size - np.count_nonzero(finite)) - nans
                values = values if finite.all() else values[finite]
            if values.size:
                low, high = min(low, values.min().item()), max(high, values.max().item())
                n, mean, squares = _combine((n, mean, squares), values.astype(np.float64))
            advance(round(tensor.nbytes * (stored.size / tensor.n_elements)))
    if not n:
        return TensorStats(None, None, None, None, n_nan, n_inf)
    return TensorStats(low, high, _finite(mean), _finite(math.sqrt(squares / n)), n_nan, n_inf)


def _combine(before: tuple[int, float, float], values: NDArray[np.float64]) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations of `before` and `values` combined."""
    import numpy as np

    n, mean, squares = before
    m = values.size
    mean_of_these = values.mean()
    values -= mean_of_these
    step = mean_of_these - mean
    squares += np.dot(values, values) + step * step * (n * m / (n + m))
    return n + m, float(mean + step * (m / (n + m))), float(squares)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
