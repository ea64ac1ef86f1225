"""The CPU backend: native kernels over weights packed into panels (native/), the default on every CPU.

A row has the same bits computed solo, in a batch, in a chunk of a prompt or one token at a time from the cache, with
any number of threads: each output's sum runs in an order fixed by the weight. See `CPUBackend.arithmetic` for
instruction sets.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import ExitStack
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rushlight.backends import _native
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.dtypes import DtypePolicy
from rushlight.backends.protocol import FileTensor, NotRecordableError, Role, is_packed, version_of
from rushlight.errors import CheckpointError, DeviceError, FormatError, NonFiniteError
from rushlight.host.memory import available_bytes
from rushlight.host.threads import threads_for, usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVGroup, KVShape
    from rushlight.backends.protocol import Array, Forward, PackedTensor, Tensor

ISA_VARIABLE = "RUSHLIGHT_ISA"
EXACT_VARIABLE = "RUSHLIGHT_EXACT"

_COMPUTE_DTYPES = dict.fromkeys(("f32", "f16", "bf16", "int8", "int4"), "f32")
"""Activations are float32 with every format of weights."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

MAX_RECORDED_ROWS = 64
"""The Python overhead of a step with more rows is small next to its computation."""

MAX_PLANS = 16
"""Recorded steps of one model, least recently used evicted first: each holds the memory of its activations."""

FILES_AT_ONCE = 64
"""A bound on the files that are open together."""

_log = logging.getLogger("rushlight")


class CPUBackend:
    """Every operation in native code. Implements `protocol.Backend`.

    Args:
        dtype: of the weights: auto (the checkpoint's own), f32, f16, bf16, int8 or int4.
        threads: the number of threads, at most the number of cores that this process may use; None is
            RUSHLIGHT_NUM_THREADS or, without it, as many as speed up each operation.
        isa: the instruction set; None is RUSHLIGHT_ISA or, without it, the fastest of this processor.
        exact: compute the same bits on every instruction set for bf16 weights too, where that is slower; None is
            RUSHLIGHT_EXACT. See `arithmetic`.
        copy: read the weights of converted files into memory, instead of mapping the files.

    Raises:
        DtypeError: the dtype is not one of these.
        DeviceError: the number of threads is invalid, RUSHLIGHT_EXACT is neither 0 nor 1, or this processor does not
            have the instruction set.
    """

    device = "cpu"
    tile_version = _native.TILE_VERSION
    """The version of the layout of packed weights, which changes whenever any format's tiles do (`native/panel.h`)."""

    def __init__(
        self,
        dtype: str = "auto",
        *,
        threads: int | None = None,
        isa: str | None = None,
        exact: bool | None = None,
        copy: bool = False,
    ) -> None:
        self._copy = copy
        self._mapped: dict[Path, _MappedFile] = {}
        self._dtypes = DtypePolicy("CPU", dtype, _COMPUTE_DTYPES)
        self._pending: list[_PendingTensor] = []
        self._tensors: WeakKeyDictionary[Any, _TensorLayout] = WeakKeyDictionary()
        n, adapts = threads_for(threads)
        self._n_threads = n
        self._native = _native.Device(n, _instruction_set(isa), _exact(exact), adapts)
        self._rows: _CachedRows | None = None
        # Bound once: the calls of a step go straight into native code.
        self.embedding = self._native.embedding
        self.linear = self._native.linear
        self.layer_norm = self._native.layer_norm
        self.rms_norm = self._native.rms_norm
        self.activation = self._native.activation
        self.split = self._native.split
        self.join = self._native.join
        self.take = self._native.take
        self.unfold = self._native.unfold
        self.angles = self._native.angles
        self.rotary = self._native.rotary
        self.sample = self._native.sample

    def load_weight(self, tensor: Tensor, role: Role) -> _native.Vector | _native.Weight:
        weight: _native.Vector | _native.Weight
        if is_packed(tensor):
            weight = self._load_packed(tensor, role)
        elif role in (Role.VECTOR, Role.CONSTANT):
            weight = self._load_vector(tensor)
        elif role is Role.CONVOLUTION:
            weight = self._load_convolution(tensor)
        else:
            weight = self._load_matrix(tensor, role)
        self._tensors[weight] = _TensorLayout(role, tensor.shape)
        return weight

    def _load_vector(self, tensor: Tensor) -> _native.Vector:
        if isinstance(tensor, FileTensor):
            vector = self._native.vector(math.prod(tensor.shape))  # a port may have parameters of any rank
            self._pending.append(_PendingTensor(tensor, "f32", vector))
            return vector
        import numpy as np

        values = tensor.float32()
        if not np.isfinite(values).all():
            raise _not_finite(tensor, "f32")
        return self._native.vector(values.reshape(-1))

    def _load_matrix(self, tensor: Tensor, role: Role) -> _native.Weight:
        rows_are_inputs = role is Role.CONV1D
        n_in, n_out = tensor.shape if rows_are_inputs else tensor.shape[::-1]
        weight = self._empty_weight(tensor, role, n_in, n_out)
        if isinstance(tensor, FileTensor):
            self._pending.append(_PendingTensor(tensor, weight.format, weight, (rows_are_inputs,)))
        elif not self._native.pack(weight, _raw(tensor), tensor.dtype, tensor.shape[1], rows_are_inputs, 0):
            raise _not_finite(tensor, weight.format)
        return weight

    def _load_packed(self, tensor: PackedTensor, role: Role) -> _native.Weight:
        """A matrix of a converted file, where it lies if the file can be mapped."""
        if tensor.packing.role != role.value:
            raise FormatError(
                "converted for another role in the model",
                file=tensor.file,
                tensor=tensor.name,
                expected=role.value,
                found=tensor.packing.role,
                remedy="convert the original again, with the same --port",
            )
        sides = tensor.packing.sides
        form = self._dtypes.keep_packed(tensor)
        with tensor.opened() as (descriptor, offset):
            if (mapping := self._mapping(tensor, descriptor)) is not None:
                return self._native.weight(form, *sides, mapping, offset)
        weight = self._native.weight(form, *sides)
        self._pending.append(_PendingTensor(tensor, form, weight))
        return weight

    def _mapping(self, tensor: PackedTensor, descriptor: int) -> _native.Mapping | None:
        """The tensor's file, mapped; None if it is to be read into memory."""
        if self._copy:
            return None
        if tensor.file not in self._mapped:
            try:
                mapping = _native.Mapping(descriptor, tensor.file_bytes)
            except OSError as error:
                _log.info("%s cannot be mapped (%s), and is read into memory", tensor.file, error.strerror)
                self._copy = True
                return None
            self._mapped[tensor.file] = _MappedFile(mapping, tensor)
        return self._mapped[tensor.file].mapping

    def check_weights(self) -> None:
        """Raises CheckpointError if a mapped file has changed, or could not be read.

        A change that restores the size and both times of the file is not seen.
        """
        for mapping, tensor in self._mapped.values():
            tensor.require_unchanged(mapping.fd)
            if mapping.failed:
                raise CheckpointError("cannot be read: its disk reported an error", file=tensor.file)
        if self._mapped:
            _native.Mapping.guard()

    def _load_convolution(self, tensor: Tensor) -> _native.Weight:
        """(out, in, size) as a LINEAR weight over unfolded rows, (out, size·in). Read at once: kernels are small."""
        import numpy as np

        n_out, n_in, size = tensor.shape
        values = np.ascontiguousarray(tensor.float32().transpose(0, 2, 1)).reshape(n_out, size * n_in)
        weight = self._empty_weight(tensor, Role.CONVOLUTION, size * n_in, n_out)
        if not self._native.pack(weight, values.view(np.uint8).reshape(-1), "F32", size * n_in, False, 0):
            raise _not_finite(tensor, weight.format)
        return weight

    def finish_loading(self, *, spare_core: bool = False) -> None:
        """Raises NonFiniteError if a weight holds a value that is not finite in its format."""
        if not spare_core or self._n_threads < usable_cores():
            self.hurry()
        pending, self._pending = self._pending, []
        while pending:
            loads, descriptors = [], set()
            with ExitStack() as files:
                for each in pending:
                    descriptor, offset = files.enter_context(each.tensor.opened())
                    loads.append(each.load(descriptor, offset))
                    descriptors.add(descriptor)
                    if len(descriptors) == FILES_AT_ONCE:
                        break
                problems = self._native.load(loads)
            some, pending = pending[: len(loads)], pending[len(loads) :]
            for each, problem in zip(some, problems, strict=True):
                if problem == _native.LoadProblem.NOT_READ:
                    _raw(each.tensor)  # raises the reason
                elif problem == _native.LoadProblem.NOT_FINITE:
                    raise _not_finite(each.tensor, each.dtype)

    def hurry(self) -> None:
        self._native.hurry()

    def tie(self, table: _native.Weight) -> _native.Weight:
        return table

    def weight_values(self, weight: _native.Vector | _native.Weight) -> NDArray[np.float32]:
        import numpy as np

        role, shape = self._tensors[weight]
        values = self._native.unpack(weight)  # (n_out, n_in) of a matrix
        self.check_weights()
        if role in (Role.VECTOR, Role.CONSTANT):
            return values.reshape(shape)
        if role is Role.CONV1D:
            return np.ascontiguousarray(values.T)
        if role is Role.CONVOLUTION:
            n_out, n_in, size = shape
            return np.ascontiguousarray(values.reshape(n_out, size, n_in).transpose(0, 2, 1))
        return values

    def read(self, weight: _native.Weight) -> None:
        """Reads every byte of the weight as a product of one row does, without arithmetic: to measure the bandwidth."""
        self._native.read(weight)

    @property
    def weight_dtypes(self) -> frozenset[str]:
        return self._dtypes.weight_dtypes

    @property
    def compute_dtype(self) -> str:
        return self._dtypes.compute_dtype

    @property
    def kv_dtype(self) -> str:
        """The format of keys and values: f32 if a matrix is in f32, otherwise f16. Final once weights are loaded.

        So they are rounded less than bf16 weights. They are rounded to nearest when written, and every row reads the
        rounded ones, its own included. Scores, softmax and sums are float32. A value beyond the range of f16
        becomes NaN, so that the logits that depend on it are NaN too, and no token is sampled from them.
        """
        return "f32" if "f32" in self.weight_dtypes else "f16"

    @property
    def dtype_label(self) -> str:
        return self._dtypes.label

    def kv_cache(self, shape: KVShape, n_blocks: int | Sequence[int]) -> _native.KVCache:
        sizes = shape.n_layer, shape.n_kv_head, shape.head_dim
        return self._native.kv_cache(self.kv_dtype, *sizes, n_blocks, shape.windows)

    def kv_block_bytes(self, shape: KVShape | KVGroup) -> int:
        value_dim = -(-shape.head_dim // 16) * 16  # values are padded to whole vectors
        item_bytes = 4 if self.kv_dtype == "f32" else 2
        return shape.n_layer * shape.n_kv_head * (shape.head_dim + value_dim) * BLOCK_SIZE * item_bytes

    @property
    def arithmetic(self) -> str:
        """The word "exact" if results are the same bits on every instruction set; otherwise the name of the set.

        f32, f16, int8 and int4 weights are always exact. bf16 weights are not where the processor multiplies bf16
        (AVX-512 BF16), which rounds the activations too, unless the backend is opened with `exact`.
        """
        exact = all(self._native.is_exact(dtype) for dtype in self.weight_dtypes)
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
        window: int | None = None,
        slopes: _native.Vector | None = None,
        softcap: float | None = None,
    ) -> _native.Array:
        rows = batch.rows if isinstance(batch, _native.Plan) else self._rows_of(batch)
        return self._native.attention(q, k, v, rows, batch.cache, layer, n_head, scale, window, slopes, softcap)

    def from_numpy(self, values: NDArray[np.floating]) -> _native.Array:
        import numpy as np

        return self._native.array(np.ascontiguousarray(values, np.float32))

    def to_numpy(self, x: _native.Array) -> NDArray[np.float32]:
        import numpy as np

        return np.asarray(x)

    def _empty_weight(self, tensor: Tensor, role: Role, n_in: int, n_out: int) -> _native.Weight:
        """Memory for a matrix in its format."""
        return self._native.weight(self._dtypes.keep(tensor, role), n_in, n_out)

    def _rows_of(self, batch: Batch) -> _native.Rows:
        """The batch's rows in native form, converted once for all layers."""
        # Holds the arrays rather than the batch, which would keep its cache alive.
        parts = (batch.row_starts, batch.positions, batch.block_tables)
        batch.require_cache()
        groups = batch.cache.groups
        cached = self._rows
        if cached is not None and cached.groups == groups and all(map(is_, cached.parts, parts)):
            return cached.rows
        rows = self._native.rows(*parts, batch.cache)
        self._rows = _CachedRows(parts, groups, rows)
        return rows

    def record(self, forward: Forward, batch: Batch) -> tuple[_native.Plan, Array]:
        """Runs the forward on a batch and records the operations: the plan to repeat them, and the result.

        Raises:
            NotRecordableError: the forward depends on values that change from step to step, or keeps an activation.
        """
        plan = self._native.plan(batch)
        return plan, plan.finish(plan.record(forward))


class _Captured:
    """A forward that records a step of few rows when its shape occurs for the second time, and replays it from then on.

    A step of the same shape runs the same operations on other tokens, positions and blocks, whose values a recording
    does not see. Plans hold while the model's version stays the same, since a changed module may run other operations.
    """

    def __init__(self, forward: Forward, backend: CPUBackend) -> None:
        self._forward = forward
        self._backend = backend
        self._plans: dict[tuple[int, int], _native.Plan] = {}
        self._seen: set[tuple[int, int]] = set()
        self._recordable = True
        self._logged = ""
        self._version = version_of(forward)

    @property
    def version(self) -> int:
        """That of the forward."""
        return version_of(self._forward)

    def __call__(self, batch: Batch) -> Array:
        shape = (len(batch.ids), len(batch.logit_rows))
        if shape[0] > MAX_RECORDED_ROWS or shape[1] == 0:
            return self._forward(batch)
        if self._version != version_of(self._forward):
            self._version = version_of(self._forward)
            self._plans, self._seen, self._recordable = {}, set(), True
        if (plan := self._plans.get(shape)) is not None:
            self._plans.pop(shape, None)
            self._plans[shape] = plan  # the most recently used is last
            out = plan.run(batch)
            return self._forward(batch) if out is None else out
        if not self._recordable or shape not in self._seen:
            self._seen.add(shape)
            return self._forward(batch)
        return self._record(batch, shape)

    def _record(self, batch: Batch, shape: tuple[int, int]) -> Array:
        plans = self._plans
        try:
            plans[shape], out = self._backend.record(self._forward, batch)
        except NotRecordableError as error:
            self._recordable = False
            if self._logged != str(error):
                self._logged = str(error)
                name = type(self._forward).__name__
                _log.info("%s cannot be recorded, and runs eagerly, which is slower: %s", name, error)
            return self._forward(batch)
        if len(plans) > MAX_PLANS:
            plans.pop(next(iter(plans)), None)
        return out


class _PendingTensor(NamedTuple):
    """A tensor whose weight has its memory, to be read into it by `finish_loading`."""

    tensor: FileTensor
    dtype: str
    to: Any  # a Weight, or a Vector, which has no orientation
    orientation: tuple[bool, ...] = ()

    def load(self, descriptor: int, offset: int) -> _native.Load:
        if is_packed(self.tensor):
            return _native.Load(self.to, descriptor, offset)
        return _native.Load(self.to, descriptor, offset, self.tensor.dtype, *self.orientation)


class _MappedFile(NamedTuple):
    """A mapped file, and a tensor in it, which knows the file's status when the checkpoint was opened."""

    mapping: _native.Mapping
    tensor: PackedTensor


class _TensorLayout(NamedTuple):
    """The role and the shape of the tensor that a weight was loaded from."""

    role: Role
    shape: tuple[int, ...]


class _CachedRows(NamedTuple):
    """The last batch's rows in native form, and the arrays they were converted from."""

    parts: tuple[Any, Any, Any]
    groups: list[tuple[int, int]]
    rows: _native.Rows


def _instruction_set(requested: str | None) -> str:
    """The instruction set to use.

    Raises:
        DeviceError: the requested set is unknown, or this processor does not have it.
    """
    available = _native.instruction_sets()
    name = requested or os.environ.get(ISA_VARIABLE, "") or available[0]
    if name not in available:
        known = _native.is_instruction_set(name)
        problem = f"this processor does not have {name}" if known else f"unknown instruction set {name!r}"
        raise DeviceError(
            f"{problem}, set by {ISA_VARIABLE}", expected=" or ".join(available), remedy="or leave it out"
        )
    return name


def _exact(requested: bool | None) -> bool:
    """Whether to compute the same bits on every instruction set: as requested, else by RUSHLIGHT_EXACT.

    Raises:
        DeviceError: the variable is neither 0 nor 1.
    """
    if requested is not None:
        return requested
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
