"""The dtypes of safetensors, and the NumPy type that each is read into.

NumPy has neither bfloat16 nor the 8-bit floats: their bits are read into an unsigned integer of the same width, and
`to_float32` decodes them. NumPy is imported on the first read, so that headers can be shown without it.

Names and widths: `Dtype` in `safetensors/src/tensor.rs`, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DTYPES", "FLOAT_DTYPES", "SUB_BYTE_DTYPES", "WEIGHT_DTYPES", "Dtype", "to_float32"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype: its name in the header, its width, and the little-endian NumPy type of its bits."""

    name: str
    itemsize: int
    numpy: str


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("BOOL", 1, "?"),
        Dtype("U8", 1, "u1"),
        Dtype("I8", 1, "i1"),
        Dtype("F8_E4M3", 1, "u1"),
        Dtype("F8_E4M3FNUZ", 1, "u1"),
        Dtype("F8_E5M2", 1, "u1"),
        Dtype("F8_E5M2FNUZ", 1, "u1"),
        Dtype("F8_E8M0", 1, "u1"),
        Dtype("U16", 2, "<u2"),
        Dtype("I16", 2, "<i2"),
        Dtype("F16", 2, "<f2"),
        Dtype("BF16", 2, "<u2"),
        Dtype("U32", 4, "<u4"),
        Dtype("I32", 4, "<i4"),
        Dtype("F32", 4, "<f4"),
        Dtype("U64", 8, "<u8"),
        Dtype("I64", 8, "<i8"),
        Dtype("F64", 8, "<f8"),
        Dtype("C64", 8, "<c8"),
    )
}

SUB_BYTE_DTYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Dtypes of the reference implementation whose elements share bytes; they are not supported."""

FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")
"""The dtypes that `to_float32` decodes."""

WEIGHT_DTYPES = (*FLOAT_DTYPES, "INT8", "INT6", "INT4")
"""The dtypes of weights: those, and the quantised formats of converted files."""


def to_float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Decodes `array`, read as `dtype`, to float32: exactly from F32, F16 and BF16, to the nearest value from F64.

    Returns a C-contiguous array of the same shape; for F32 it is `array` itself.

    Raises:
        FloatingPointError: a finite F64 value is out of the range of float32.
        KeyError: `dtype` is not one of `FLOAT_DTYPES`.
    """
    import numpy as np

    if dtype == "F32":
        return array
    if dtype == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype in FLOAT_DTYPES:
        with np.errstate(over="raise"):
            return array.astype(np.float32)
    raise KeyError(dtype)
