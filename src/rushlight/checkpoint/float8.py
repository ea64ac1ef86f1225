"""Decodes 8-bit floats to float32 by a table of their 256 values.

F8_E4M3 and F8_E5M2 are those of OCP's "8-bit Floating Point Specification" 1.0, the former without infinity; F8_E8M0 is
the scale of OCP's "Microscaling Formats" 1.0, a power of two without a sign. The FNUZ forms are those of Noune et al.,
arXiv:2206.02915: a bias greater by one, no infinity, and NaN in place of -0. ml_dtypes and torch call them
float8_e4m3fn, float8_e5m2, float8_e8m0fnu, float8_e4m3fnuz and float8_e5m2fnuz.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FLOAT8_DTYPES", "float8_to_float32"]

_EXPONENT_BITS = {
    "F8_E4M3": (4, 7),
    "F8_E4M3FNUZ": (4, 8),
    "F8_E5M2": (5, 15),
    "F8_E5M2FNUZ": (5, 16),
}
"""Exponent bits and exponent bias."""

FLOAT8_DTYPES = (*_EXPONENT_BITS, "F8_E8M0")
"""The dtypes that `float8_to_float32` decodes."""


def float8_to_float32(bits: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Decodes 8-bit floats to float32, exactly, into a new array of the same shape.

    Raises:
        KeyError: `dtype` is not one of `FLOAT8_DTYPES`.
    """
    return _table(dtype)[bits]


@cache
def _table(dtype: str) -> NDArray[np.float32]:
    import numpy as np

    bits = np.arange(256)
    if dtype == "F8_E8M0":
        values: NDArray[Any] = np.ldexp(1.0, bits - 127)
        values[0xFF] = np.nan
        return values.astype(np.float32)
    exponent_bits, bias = _EXPONENT_BITS[dtype]
    mantissa_bits = 7 - exponent_bits
    mantissa, exponent = bits & ((1 << mantissa_bits) - 1), (bits & 0x7F) >> mantissa_bits
    significand = mantissa + ((exponent > 0) << mantissa_bits)
    values = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    if dtype == "F8_E5M2":
        values[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    elif dtype == "F8_E4M3":
        values[(bits & 0x7F) == 0x7F] = np.nan
    values = np.where(bits & 0x80, -values, values)
    if dtype.endswith("FNUZ"):
        values[0x80] = np.nan
    return values.astype(np.float32)
