"""The dtype policy that every backend follows: what each weight is kept in, and what activations are computed in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rushlight.backends.protocol import Role
from rushlight.errors import DtypeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rushlight.backends.protocol import PackedTensor, Tensor

DTYPES = ("auto", "f32", "f64", "f16", "bf16", "int8", "int4")
"""The dtypes that a user may request; each device supports some of them. auto keeps every weight in the checkpoint's
own dtype."""

WEIGHT_BYTES = {"f64": 8.0, "f32": 4.0, "f16": 2.0, "bf16": 2.0, "int8": 1.0625, "int4": 0.5625}
"""Bytes of one weight in a dtype, including its share of the scales."""

TABLE_DTYPES = {"int4": "int6"}
"""Requested dtype -> the dtype of tables, where it is another: a table usually serves as the head too, where four bits
cost the most quality."""

TABLE_BYTES = {"int4": 0.8125}
"""Bytes of one weight of a table, by the requested dtype, where it is kept in another."""

CHECKPOINT_DTYPES = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""safetensors dtype -> the dtype that auto keeps it in; F64 is rounded."""

_OTHER_NAMES = {
    "f64": "float64 fp64 double",
    "f32": "float32 fp32 float single full",
    "f16": "float16 fp16 half",
    "bf16": "bfloat16 bfloat brainfloat16",
    "int8": "i8 q8 8bit 8 uint8 fp8 f8",
    "int4": "i4 q4 4bit 4 uint4 nf4 fp4",
}


def similar_dtype(name: str) -> str | None:
    """The dtype that other programs call `name`, such as float16, or that is spelt similarly; None if there is none.

    "Q4_K_M" -> "int4"
    """
    from difflib import get_close_matches

    word = re.split(r"[_.]", name.lower().removeprefix("torch."))[0].replace("-", "")
    for dtype, others in _OTHER_NAMES.items():
        if word == dtype or word in others.split():
            return dtype
    return next(iter(get_close_matches(word, DTYPES, n=1, cutoff=0.7)), None)


class DtypePolicy:
    """The dtypes of one backend's weights: as requested, and as loaded so far.

    Args:
        device: for the error message.
        requested: one of DTYPES.
        compute_dtypes: every weight dtype that the backend supports, with the dtype of the activations that it
            multiplies such weights by. Biases and gains are kept in the latter.

    Raises:
        DtypeError: the backend does not support the requested dtype.
    """

    def __init__(self, device: str, requested: str, compute_dtypes: Mapping[str, str]) -> None:
        check_dtype(device, requested, ["auto", *compute_dtypes])
        self._requested = requested
        self._compute_dtypes = compute_dtypes
        self._loaded: set[str] = set()

    def keep(self, tensor: Tensor, role: Role) -> str:
        """The dtype to keep a tensor in; a matrix's is recorded as loaded."""
        if role is Role.CONSTANT:
            return "f32"
        dtype = CHECKPOINT_DTYPES[tensor.dtype] if self._requested == "auto" else self._requested
        if role is Role.VECTOR:
            return self._compute_dtypes[dtype]
        if role is Role.TABLE:
            dtype = TABLE_DTYPES.get(dtype, dtype)
        self._loaded.add(dtype)
        return dtype

    def keep_packed(self, tensor: PackedTensor) -> str:
        """The dtype of a packed matrix, recorded as loaded. auto becomes the dtype that its file was converted to.

        Raises:
            DtypeError: another dtype was requested: its numbers are not rounded again.
        """
        converted = tensor.converted_dtype
        if self._requested == "auto":
            self._requested = converted
        if self._requested != converted:
            raise DtypeError(
                f"the weights are converted to {converted}, and not packed again in {self._requested}",
                remedy=f"leave out --dtype, or convert the original to {self._requested}",
            )
        self._loaded.add(tensor.packing.format)
        return tensor.packing.format

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The dtypes of the matrices loaded so far; before the first, the requested dtype (f32 for auto)."""
        return frozenset(self._loaded or {"f32" if self._requested == "auto" else self._requested})

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations: f32 where the weights' dtypes ask for different ones."""
        if self._requested != "auto":
            return self._compute_dtypes[self._requested]
        found = {self._compute_dtypes[dtype] for dtype in self.weight_dtypes}
        return found.pop() if len(found) == 1 else "f32"

    @property
    def label(self) -> str:
        """The weights' dtype for display: the requested one, or for auto all that were loaded, as in "bf16/f32"."""
        return "/".join(sorted(self.weight_dtypes)) if self._requested == "auto" else self._requested


def check_dtype(device: str, requested: str, supported: Collection[str], remedy: str | None = None) -> None:
    """Raises DtypeError if the requested dtype is not one of those that a backend supports."""
    if requested not in supported:
        raise DtypeError(
            f"the {device} backend does not support dtype {requested}",
            expected=" or ".join(supported),
            remedy=remedy,
        )
