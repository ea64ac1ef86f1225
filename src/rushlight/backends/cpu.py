"""The CPU backend: native kernels over weights packed into panels (native/), the default on every CPU.

A row's results are the same bits alone, in a batch, in a chunk of a prompt or one at a time from the cache, by any
number of threads: each output's sum runs in an order fixed by the weight. They may differ in the last places between
instruction sets.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.backends import _native
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.protocol import FileTensor, Role
from rushlight.errors import DeviceError, DtypeError, NonFiniteError
from rushlight.host.memory import available_bytes
from rushlight.host.threads import threads_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVShape
    from rushlight.backends.protocol import Array, Forward, Tensor

DTYPES = ("auto", "f32", "f16", "bf16", "int8", "int4")
"""What the weights are kept in; auto is the checkpoint's own. Activations are float32; for keys and values see
`CPUBackend.kv_dtype`."""

ISA_VARIABLE = "RUSHLIGHT_ISA"
EXACT_VARIABLE = "RUSHLIGHT_EXACT"

_FORMATS = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""The format that keeps a checkpoint's dtype; f64 is rounded."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

MOST_PLANNED_ROWS = 64
"""A step of more rows computes for so long that what Python takes beside it is not seen."""

MOST_PLANS = 16
"""Kept of a model, the last used: each has the memory of its step's activations."""

READ_TOGETHER = 64
"""Tensors that are read at the same time, and so the most files that this holds open."""


class CPUBackend:
    """Every operation in native code. Implements `protocol.Backend`.

    Args:
        dtype: of the weights, a word of DTYPES.
        threads: how many to compute with, at most one for each core that this process may use; None is
            RUSHLIGHT_NUM_THREADS, or as many of these as pay.
        isa: the instruction set; None is RUSHLIGHT_ISA, or the best that this processor has.
        exact: compute the same bits on every instruction set for bf16 weights too, where that is slower; None is
            RUSHLIGHT_EXACT. See `arithmetic`.

    Raises:
        DtypeError: there is no such dtype here.
        DeviceError: the number of threads is not valid, RUSHLIGHT_EXACT is neither 0 nor 1, or this processor does not
            have the instruction set.
    """

    device = "cpu"

    def __init__(
        self,
        dtype: str = "auto",
        *,
        threads: int | None = None,
        isa: str | None = None,
        exact: bool | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise DtypeError(f"the CPU backend does not compute in {dtype}", expected=" or ".join(DTYPES))
        self._requested = dtype
        self._placed: set[str] = set()
        self._unread: list[_Unread] = []
        self.dtype = "f32" if dtype == "auto" else dtype
        """What the weights are kept in; with auto, what they turn out to be as they are placed."""
        n, adapts = threads_for(threads)
        self._native = _native.Device(n, _instruction_set(isa), _exact(exact), adapts)
        self._rows: _KeptRows | None = None
        # Bound once: the calls of a step go straight into native code.
        self.embedding = self._native.embedding
        self.linear = self._native.linear
        self.layer_norm = self._native.layer_norm
        self.activation = self._native.activation
        self.split = self._native.split
        self.take = self._native.take
        self.unfold = self._native.unfold
        self.sample = self._native.sample

    def load_weight(self, tensor: Tensor, role: Role) -> _native.Vector | _native.Weight:
        if role is Role.VECTOR:
            return self._place_vector(tensor)
        if role is Role.CONVOLUTION:
            return self._place_convolution(tensor)
        rows_are_inputs = role is Role.CONV1D
        n_in, n_out = tensor.shape if rows_are_inputs else tensor.shape[::-1]
        weight = self._weight(tensor, role, n_in, n_out)
        if isinstance(tensor, FileTensor):
            self._unread.append(_Unread(tensor, weight.format, weight, (rows_are_inputs,)))
        elif not self._native.pack(weight, _raw(tensor), tensor.dtype, tensor.shape[1], rows_are_inputs, 0):
            raise _not_finite(tensor, weight.format)
        return weight

    def _place_vector(self, tensor: Tensor) -> _native.Vector:
        if isinstance(tensor, FileTensor):
            vector = self._native.vector(math.prod(tensor.shape))  # a port may have parameters of any rank
            self._unread.append(_Unread(tensor, "f32", vector))
            return vector
        import numpy as np

        values = tensor.float32()
        if not np.isfinite(values).all():
            raise _not_finite(tensor, "f32")
        return self._native.vector(values.reshape(-1))

    def _place_convolution(self, tensor: Tensor) -> _native.Weight:
        """(out, in, size) as a product over windows of size·in, read at once: kernels are small."""
        import numpy as np

        n_out, n_in, size = tensor.shape
        values = np.ascontiguousarray(tensor.float32().transpose(0, 2, 1)).reshape(n_out, size * n_in)
        weight = self._weight(tensor, Role.CONVOLUTION, size * n_in, n_out)
        if not self._native.pack(weight, values.view(np.uint8).reshape(-1), "F32", size * n_in, False, 0):
            raise _not_finite(tensor, weight.format)
        return weight

    def finish_loading(self) -> None:
        """Raises NonFiniteError if a value of a weight is not finite in the weight's format."""
        unread, self._unread = self._unread, []
        for first in range(0, len(unread), READ_TOGETHER):
            some = unread[first : first + READ_TOGETHER]
            with ExitStack() as files:
                problems = self._native.load([each.load(*files.enter_context(each.tensor.opened())) for each in some])
            for each, problem in zip(some, problems, strict=True):
                if problem == _native.LoadProblem.NOT_READ:
                    _raw(each.tensor)  # which says why
                elif problem == _native.LoadProblem.NOT_FINITE:
                    raise _not_finite(each.tensor, each.dtype)

    def tie(self, table: _native.Weight) -> _native.Weight:
        return table

    def read(self, weight: _native.Weight) -> None:
        """Reads every byte of the weight as a product of one row does, and computes nothing: to measure the memory."""
        self._native.read(weight)

    @property
    def kv_dtype(self) -> str:
        """What keys and values are kept in, once the weights are placed: f32 beside any matrix in f32, otherwise f16.

        So they are rounded less than bf16 weights were. They are rounded to nearest as they are written, and read from
        there by every row, its own included. Scores, softmax and sums are float32. A value beyond f16's range is kept
        as NaN, so that the logits that depend on it are NaN as well, from which no token is chosen.
        """
        return "f32" if "f32" in self.dtype else "f16"

    def kv_cache(self, shape: KVShape, n_blocks: int) -> _native.KVCache:
        return self._native.kv_cache(self.kv_dtype, shape.n_layer, shape.n_kv_head, shape.head_dim, n_blocks)

    def kv_block_bytes(self, shape: KVShape) -> int:
        value_dim = -(-shape.head_dim // 16) * 16  # values are padded to whole vectors
        item_bytes = 4 if self.kv_dtype == "f32" else 2
        return shape.n_layer * shape.n_kv_head * (shape.head_dim + value_dim) * BLOCK_SIZE * item_bytes

    @property
    def arithmetic(self) -> str:
        """The word "exact" where results are the same bits on every instruction set; otherwise the name of the set.

        f32, f16, int8 and int4 weights are always exact. bf16 weights are not where the processor has products of bf16
        (AVX-512 BF16), which round the activations too, unless the backend is opened with `exact`.
        """
        exact = all(self._native.is_exact(dtype) for dtype in self.dtype.split("/"))
        return "exact" if exact else self._native.isa

    def available_bytes(self) -> int:
        return available_bytes()

    def capture(self, forward: Forward) -> Forward:
        return _Captured(forward, self)

    def attention(
        self,
        q: _native.Array,
        k: _native.Array,
        v: _native.Array,
        batch: Batch | _native.Plan,
        *,
        layer: int,
        n_head: int,
        scale: float,
    ) -> _native.Array:
        rows = batch.rows if isinstance(batch, _native.Plan) else self.rows_of(batch)
        return self._native.attention(q, k, v, rows, batch.cache, layer, n_head, scale)

    def from_numpy(self, values: NDArray[np.floating]) -> _native.Array:
        import numpy as np

        return self._native.array(np.ascontiguousarray(values, np.float32))

    def to_numpy(self, x: _native.Array) -> NDArray[np.float32]:
        import numpy as np

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

    def rows_of(self, batch: Batch) -> _native.Rows:
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

    def plan_of(self, forward: Forward, batch: Batch) -> tuple[_native.Plan | None, Array]:
        """The forward of a batch, and the plan of it, if it could be recorded."""
        plan = self._native.plan(batch)
        try:
            out = plan.record(forward)
        except Exception:  # it wanted to know more than a plan tells; or it is wrong, and will say so again
            return None, forward(batch)
        result = plan.finish(out)
        return (None, out) if result is None else (plan, result)


class _Captured:
    """A forward whose steps of few rows are recorded when their shape comes for the second time, and then repeated.

    A step of the same shape is the same operations on other tokens, positions and blocks; what is recorded sees none of
    these. A forward that looks at them, or at an activation, or keeps one, or changes its modules, is called each time.
    """

    def __init__(self, forward: Forward, backend: CPUBackend) -> None:
        self._forward = forward
        self._backend = backend
        self._plans: dict[tuple[int, int], _native.Plan | None] = {}
        self._seen: set[tuple[int, int]] = set()
        self._version = _version(forward)

    def __call__(self, batch: Batch) -> Array:
        if len(batch.ids) > MOST_PLANNED_ROWS:
            return self._forward(batch)
        if self._version != _version(self._forward):
            self._version = _version(self._forward)
            self._plans, self._seen = {}, set()
        shape = (len(batch.ids), len(batch.logit_rows))
        plans = self._plans
        if shape in plans:
            plan = plans[shape] = plans.pop(shape, None)  # the last used is last
            out = None if plan is None else plan.run(batch)
            return self._forward(batch) if out is None else out
        if shape not in self._seen:
            self._seen.add(shape)
            return self._forward(batch)
        plans[shape], out = self._backend.plan_of(self._forward, batch)
        if len(plans) > MOST_PLANS:
            plans.pop(next(iter(plans)), None)
        return out


def _version(forward: Forward) -> int:
    """Grows when a module of the forward is changed, see `rushlight.nn.Module`; plain functions do not change."""
    return getattr(forward, "version", 0)


class _Unread(NamedTuple):
    """A tensor whose weight has its room, and how it will be read into it."""

    tensor: FileTensor
    dtype: str
    to: Any  # a Weight, or a Vector, which has no orientation
    orientation: tuple[bool, ...] = ()

    def load(self, descriptor: int, offset: int) -> _native.Load:
        return _native.Load(self.to, descriptor, offset, self.tensor.dtype, *self.orientation)


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


def _exact(asked: bool | None) -> bool:
    """Whether to compute the same bits on every instruction set: `asked`, else what RUSHLIGHT_EXACT says.

    Raises:
        DeviceError: the variable is neither 0 nor 1.
    """
    if asked is not None:
        return asked
    value = os.environ.get(EXACT_VARIABLE, "")
    if value not in {"", "0", "1"}:
        raise DeviceError(f"{EXACT_VARIABLE} is {value!r}", expected="0 or 1", remedy="or leave it out")
    return value == "1"


def _raw(tensor: Tensor) -> NDArray[np.uint8]:
    """The tensor's bytes."""
    import numpy as np

    raw = np.empty(math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype], np.uint8)
    tensor.read_into(raw, 0)
    return raw


def _not_finite(tensor: Tensor, dtype: str) -> NonFiniteError:
    return NonFiniteError(f"a weight is not a finite {dtype} number", tensor=tensor.name)
