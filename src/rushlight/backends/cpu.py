"""The CPU backend: native kernels over weights packed into panels (native/), the default on every CPU.

A row's results are the same bits alone, in a batch, in a chunk of a prompt or one at a time from the cache, by any
number of threads: each output's sum runs in an order fixed by the weight. They may differ in the last places between
instruction sets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.backends import _native
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.memory import available_bytes
from rushlight.backends.protocol import Role
from rushlight.backends.threads import thread_count
from rushlight.errors import DeviceError, DtypeError, NonFiniteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVShape
    from rushlight.backends.protocol import Draw, Tensor

DTYPES = ("auto", "f32", "f16", "bf16", "int8", "int4")
"""What the weights are kept in; auto is the checkpoint's own. Activations, keys and values are float32."""

ISA_VARIABLE = "RUSHLIGHT_ISA"

_FORMATS = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""The format that keeps a checkpoint's dtype; f64 is rounded."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_PIECE_BYTES = 4 << 20
"""Of a matrix read and packed at once: small enough to be still in the cache when it is packed, and the only memory
that loading takes beside the weights."""


class CPUBackend:
    """Every operation in native code. Implements `protocol.Backend`.

    Args:
        dtype: of the weights, a word of DTYPES.
        threads: how many to compute with; None is RUSHLIGHT_NUM_THREADS, or as many as this process has cores for.
        isa: the instruction set; None is RUSHLIGHT_ISA, or the best that this processor has.

    Raises:
        DtypeError: there is no such dtype here.
        DeviceError: a number of threads that is none, or an instruction set that this processor does not have.
    """

    device = "cpu"

    def __init__(self, dtype: str = "auto", *, threads: int | None = None, isa: str | None = None) -> None:
        if dtype not in DTYPES:
            raise DtypeError(f"the CPU backend does not compute in {dtype}", expected=" or ".join(DTYPES))
        self._requested = dtype
        self._placed: set[str] = set()
        self.dtype = "f32" if dtype == "auto" else dtype
        """What the weights are kept in; with auto, what they turn out to be as they are placed."""
        self._native = _native.Device(thread_count(threads), _instruction_set(isa))
        self._rows: _KeptRows | None = None
        # Bound once: the calls of a step go straight into native code.
        self.embedding = self._native.embedding
        self.linear = self._native.linear
        self.layer_norm = self._native.layer_norm
        self.activation = self._native.activation
        self.split = self._native.split
        self.take = self._native.take
        self.windows = self._native.windows
        self.sample: Draw | None = self._native.sample

    def place(self, tensor: Tensor, role: Role) -> _native.Vector | _native.Weight:
        """Raises NonFiniteError if a value is not finite in the weight's format."""
        if role is Role.VECTOR:
            values = tensor.float32()
            if not np.isfinite(values).all():
                raise _not_finite(tensor, "f32")
            return self._native.vector(values.reshape(-1))  # a port may have parameters of any rank
        if role is Role.CONVOLUTION:
            return self._place_convolution(tensor)
        n_rows, n_columns = tensor.shape
        rows_are_inputs = role is Role.CONV1D
        n_in, n_out = (n_rows, n_columns) if rows_are_inputs else (n_columns, n_rows)
        weight = self._weight(tensor, role, n_in, n_out)
        row_bytes = n_columns * _ITEM_BYTES[tensor.dtype]
        piece_rows = max(1, _PIECE_BYTES // (32 * row_bytes)) * 32  # all pieces but the last hold whole tiles
        buffer = np.empty(min(piece_rows, n_rows) * row_bytes, np.uint8)
        for first in range(0, n_rows, piece_rows):
            raw = buffer[: min(piece_rows, n_rows - first) * row_bytes]
            tensor.read_into(raw, first * row_bytes)
            if not self._native.pack(weight, raw, tensor.dtype, n_columns, rows_are_inputs, first):
                raise _not_finite(tensor, weight.format)
        return weight

    def _place_convolution(self, tensor: Tensor) -> _native.Weight:
        """(out, in, size) as a product over windows of size·in, read at once: kernels are small."""
        n_out, n_in, size = tensor.shape
        values = np.ascontiguousarray(tensor.float32().transpose(0, 2, 1)).reshape(n_out, size * n_in)
        weight = self._weight(tensor, Role.CONVOLUTION, size * n_in, n_out)
        if not self._native.pack(weight, values.view(np.uint8).reshape(-1), "F32", size * n_in, False, 0):
            raise _not_finite(tensor, weight.format)
        return weight

    def tie(self, table: _native.Weight) -> _native.Weight:
        return table

    def read(self, weight: _native.Weight) -> None:
        """Reads every byte of the weight as a product of one row does, and computes nothing: to measure the memory."""
        self._native.read(weight)

    def kv_cache(self, shape: KVShape, n_blocks: int) -> _native.KVCache:
        return self._native.kv_cache(shape.n_layer, shape.n_head, shape.head_dim, n_blocks)

    def kv_block_bytes(self, shape: KVShape) -> int:
        value_dim = -(-shape.head_dim // 16) * 16  # values are padded to whole vectors
        return shape.n_layer * shape.n_head * (shape.head_dim + value_dim) * BLOCK_SIZE * 4

    def available_bytes(self) -> int:
        return available_bytes()

    def attention(
        self,
        q: _native.Array,
        k: _native.Array,
        v: _native.Array,
        batch: Batch,
        *,
        layer: int,
        n_head: int,
        scale: float,
    ) -> _native.Array:
        return self._native.attention(q, k, v, self._rows_of(batch), batch.cache, layer, n_head, scale)

    def from_numpy(self, values: NDArray[np.floating]) -> _native.Array:
        return self._native.array(np.ascontiguousarray(values, np.float32))

    def to_numpy(self, x: _native.Array) -> NDArray[np.float32]:
        return np.asarray(x)

    def _weight(self, tensor: Tensor, role: Role, n_in: int, n_out: int) -> _native.Weight:
        """Room for a matrix in its format."""
        weight = self._native.weight(self._format(tensor, role), n_in, n_out)
        if self._requested == "auto":
            self._placed.add(weight.format)
            self.dtype = "/".join(sorted(self._placed))
        return weight

    def _format(self, tensor: Tensor, role: Role) -> str:
        if self._requested == "auto":
            return _FORMATS[tensor.dtype]
        if self._requested == "int4" and role is Role.TABLE:
            # A table is most often the head too, and there four bits cost the most quality.
            return "int8"
        return self._requested

    def _rows_of(self, batch: Batch) -> _native.Rows:
        """The batch's rows in native form, made once for its layers."""
        # Not the batch itself is kept: it would hold its cache.
        parts = (batch.row_starts, batch.positions, batch.block_tables)
        n_blocks = batch.cache.n_blocks
        kept = self._rows
        if (
            kept is not None
            and kept.n_blocks == n_blocks
            and all(a is b for a, b in zip(kept.parts, parts, strict=True))
        ):
            return kept.rows
        rows = self._native.rows(*parts, n_blocks)
        self._rows = _KeptRows(parts, n_blocks, rows)
        return rows


class _KeptRows(NamedTuple):
    """The last batch's rows in native form, and what they were made from."""

    parts: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    n_blocks: int
    rows: _native.Rows


def _instruction_set(asked: str | None) -> str:
    """The instruction set to use.

    Raises:
        DeviceError: the one asked for is unknown, or this processor does not have it.
    """
    available = _native.instruction_sets()
    name = asked or os.environ.get(ISA_VARIABLE, "") or available[0]
    if name not in available:
        known = _native.is_instruction_set(name)
        problem = f"this processor does not have {name}" if known else f"there is no instruction set {name!r}"
        raise DeviceError(
            f"{problem}, named by {ISA_VARIABLE}", expected=" or ".join(available), remedy="or leave it out"
        )
    return name


def _not_finite(tensor: Tensor, dtype: str) -> NonFiniteError:
    return NonFiniteError(f"a weight is not a finite {dtype} number", tensor=tensor.name)
