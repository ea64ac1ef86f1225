"""The CUDA backend: PyTorch's operations, decode steps recorded as CUDA graphs, attention over blocks in Triton.

`torch-cpu` is the same code on PyTorch's CPU device, without graphs and Triton. It is slow, and lets everything but
those two be tested without a GPU.

A row's results depend only on its own sequence, but PyTorch chooses different kernels for different shapes, so they may
differ in the last places between batch sizes.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, PyTorch's own name for it
from torch.nn.attention.bias import causal_lower_right

from rushlight.backends.arguments import check_attention, check_join, check_norm, check_rotary, check_window, part_sizes
from rushlight.backends.batch import BLOCK_SIZE, blocks_of_groups
from rushlight.backends.device_step import (
    Captured,
    HostStep,
    LastStep,
    PromptChunk,
    Recordings,
    Scoring,
    allowed_tokens,
    attend,
    in_parts,
    padded,
)
from rushlight.backends.dtypes import DtypePolicy
from rushlight.backends.fusion import Deferred, Fused, Norm, value_of
from rushlight.backends.protocol import NotRecordableError, Role
from rushlight.backends.weights import ArrayWeight
from rushlight.errors import DeviceError, NonFiniteError
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVGroup, KVShape
    from rushlight.backends.protocol import Array, Forward, SamplingRow, Tensor

COMPUTE_DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "bf16"}
"""Weight dtype -> the dtype of activations, keys and values. Norms, softmax and sums are computed in float32."""

_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

MAX_FUSED_ROWS = 16
"""Up to this many rows, launching an operation takes as long as computing it, and neighbouring operations are fused.
For more, PyTorch's products are faster, which read each weight once for many rows."""

_FILE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Int8Weight(NamedTuple):
    """A matrix in eight bits: row o is scales[o] · values[o].

    Attributes:
        values: (n_out, n_in) int8, from -127 to 127.
        scales: (n_out,) float32.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)


class TorchKVCache:
    """Keys and values, each one (n_places, K, D) tensor per layer, BLOCK_SIZE places per block.

    Each group of layers has one block more than requested, its spare one, which padding rows write to.
    """

    def __init__(self, shape: KVShape, n_blocks: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.group_of = shape.group_of
        self.windows = shape.windows or (None,) * shape.n_layer
        self.spares = tuple(n_blocks)
        dims = [((n_blocks[g] + 1) * BLOCK_SIZE, shape.n_kv_head, shape.head_dim) for g in self.group_of]
        self.keys = [_zeros(each, dtype, device) for each in dims]
        self.values = [_zeros(each, dtype, device) for each in dims]
        self.graphs: Recordings[_Graph] = Recordings()
        """They hold the cache's addresses, and are dropped with it."""


class TorchBackend:
    """Every operation in PyTorch. Implements `protocol.Backend`.

    Args:
        device: cuda, cuda:1 and so on, or torch-cpu.
        dtype: of the weights: auto, or one of COMPUTE_DTYPES.
        threads: for torch-cpu, where it applies to everything that this process does with PyTorch; None changes
            nothing.

    Raises:
        DtypeError: the dtype is not one of those.
        DeviceError: PyTorch cannot use the GPU.
    """

    tile_version = None

    def __init__(self, device: str = "cuda", dtype: str = "auto", *, threads: int | None = None) -> None:
        self._dtypes = DtypePolicy(device, dtype, COMPUTE_DTYPES)
        self.device = self.arithmetic = device
        self._on = torch.device("cpu" if device == "torch-cpu" else device)
        self._steps = LastStep(self._upload)
        self._records = self._on.type == "cuda"
        self._recorder: int | None = None
        """The thread that records a graph."""
        self._kernels: Any = None
        self._mask: tuple[NDArray[np.bool_], torch.Tensor] | None = None
        if self._on.type == "cuda":
            self._start_cuda()
        elif threads is not None:
            torch.set_num_threads(threads)

    @property
    def weight_dtypes(self) -> frozenset[str]:
        return self._dtypes.weight_dtypes

    @property
    def compute_dtype(self) -> str:
        return self._dtypes.compute_dtype

    @property
    def kv_dtype(self) -> str:
        return self._dtypes.compute_dtype

    @property
    def dtype_label(self) -> str:
        return self._dtypes.label

    def _start_cuda(self) -> None:
        try:
            torch.zeros(1, device=self._on)
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(
                f"PyTorch {torch.__version__} cannot use {self.device}: {str(error).splitlines()[0]}",
                remedy="update the NVIDIA driver, or install a build of PyTorch for this one: https://pytorch.org",
            ) from None
        # Sums stay in float32, also where a product is split and its parts are added.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        with torch.cuda.device(self._on):
            self._stream = torch.cuda.Stream()
        try:
            from rushlight.backends import cuda_kernels
        except ImportError:  # PyTorch for Windows comes without Triton
            return
        self._kernels = cuda_kernels

    # Weights and caches

    def load_weight(self, tensor: Tensor, role: Role) -> ArrayWeight:
        """Raises NonFiniteError if a value is not finite in the weight's dtype, DeviceError if memory runs out."""
        dtype = self._dtypes.keep(tensor, role)
        raw = torch.empty(tensor_bytes(tensor), dtype=torch.uint8)
        tensor.read_into(raw.numpy(), 0)
        with self._memory_for(tensor.name):
            values = raw.view(_FILE_TYPES[tensor.dtype]).reshape(tensor.shape).to(self._on)
            rounded_to = "f32" if dtype == "int8" else dtype
            values = values.to(_TYPES[rounded_to])
            if not torch.isfinite(values).all():
                raise NonFiniteError(f"a weight is not a finite {rounded_to} number", tensor=tensor.name)
            match role:
                case Role.VECTOR | Role.CONSTANT:
                    values = values.flatten()  # a port may have parameters of any rank
                case Role.CONV1D:
                    values = values.T.contiguous()
                case Role.CONVOLUTION:
                    values = values.transpose(1, 2).flatten(1)  # (out, size·in)
            return ArrayWeight(quantise(values) if dtype == "int8" else values, tensor.shape, role)

    def finish_loading(self, *, spare_core: bool = False) -> None:
        """Does nothing: `load_weight` reads the tensor."""

    def hurry(self) -> None:
        """Does nothing."""

    def tie(self, table: ArrayWeight) -> ArrayWeight:
        return table  # (V, C) is (out, in)

    def check_weights(self) -> None:
        """Does nothing: no weight is mapped from a file."""

    def weight_values(self, weight: ArrayWeight) -> NDArray[np.float32]:
        values = weight.values
        if isinstance(values, Int8Weight):
            values = values.values * values.scales[:, None]
        return weight.as_loaded(values.float().numpy(force=True))

    def kv_cache(self, shape: KVShape, n_blocks: int | Sequence[int]) -> TorchKVCache:
        """Raises DeviceError if memory runs out."""
        of_groups = blocks_of_groups(shape, n_blocks)
        with self._memory_for(f"{max(of_groups)} blocks of keys and values"):
            return TorchKVCache(shape, of_groups, _TYPES[self.kv_dtype], self._on)

    def kv_block_bytes(self, shape: KVShape | KVGroup) -> int:
        value_bytes: int = _TYPES[self.kv_dtype].itemsize
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * value_bytes

    def available_bytes(self) -> int:
        if self._on.type == "cpu":
            return available_bytes()
        # Memory that PyTorch has reserved and does not use is available too.
        unused = torch.cuda.memory_reserved(self._on) - torch.cuda.memory_allocated(self._on)
        return int(torch.cuda.mem_get_info(self._on)[0] + unused)

    # Operations

    def embedding(self, ids: NDArray[np.int32] | torch.Tensor, table: ArrayWeight, first_row: int = 0) -> torch.Tensor:
        at = self._index(ids)
        if first_row:
            at = at + first_row
        if isinstance(table.values, Int8Weight):
            return (table.values.values[at] * table.values.scales[at, None]).to(torch.bfloat16)
        return F.embedding(at, table.values)

    def linear(self, x: Array, weight: ArrayWeight, bias: ArrayWeight | None) -> Array:
        normed = x.normed() if isinstance(x, Deferred) else None
        return self._fuse((normed or Fused(value_of(x)))._replace(weight=weight.values, bias=_values(bias)))

    def layer_norm(self, x: Array, weight: ArrayWeight, bias: ArrayWeight | None, eps: float) -> Array:
        x = value_of(x)
        check_norm(x, len(weight.values), None if bias is None else len(bias.values))
        return self._fuse(Fused(x, Norm(weight.values, _values(bias), eps)))

    def rms_norm(self, x: Array, weight: ArrayWeight, eps: float, offset: float = 0.0) -> Array:
        x, norm = value_of(x), Norm(weight.values, None, eps, offset, rms=True)
        n_channels = len(weight.values)
        check_norm(x, n_channels, grouped=True)
        if x.shape[1] == n_channels:
            return self._fuse(Fused(x, norm))
        return _normed(x.unflatten(1, (-1, n_channels)), norm).flatten(1)

    def activation(self, x: Array, name: str) -> Array:
        activated = x.activated(name) if isinstance(x, Deferred) else None
        return ACTIVATION_FUNCTIONS[name](value_of(x)) if activated is None else activated

    def _fuse(self, fused: Fused) -> Array:
        """Deferred, for the next operation to extend, if there are few rows; else its value."""
        return Deferred(fused, self._compute) if len(fused.x) <= MAX_FUSED_ROWS else compute(fused)

    def _compute(self, fused: Fused) -> torch.Tensor:
        return self._kernels.linear(fused) if self._kernels and fused.weight is not None else compute(fused)

    def split(self, x: Array, sizes: int | Sequence[int], *, groups: int = 1) -> Sequence[torch.Tensor]:
        x = value_of(x)
        sizes = part_sizes(x.shape[1], sizes, groups)
        if groups == 1:
            parts: Sequence[torch.Tensor] = x.split(sizes, dim=1)
            return parts
        return [part.flatten(1) for part in x.unflatten(1, (groups, -1)).split(sizes, dim=2)]

    def join(self, parts: Sequence[Array]) -> torch.Tensor:
        check_join(parts)
        return torch.cat([value_of(part) for part in parts], 1)

    def take(self, x: Array, rows: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        return value_of(x).index_select(0, self._index(rows))

    def unfold(self, x: Array, rows: NDArray[np.int32]) -> torch.Tensor:
        at = self._index(rows)
        return torch.where(at[:, :, None] >= 0, value_of(x)[at.clamp(min=0)], 0).flatten(1)

    def angles(
        self, positions: NDArray[np.int32] | torch.Tensor, frequencies: ArrayWeight, scale: float = 1.0
    ) -> torch.Tensor:
        angle = self._index(positions).float()[:, None] * frequencies.values
        return torch.cat([angle.cos(), angle.sin()], 1) * scale

    def rotary(self, x: Array, angles: torch.Tensor, n_head: int, *, interleaved: bool = False) -> torch.Tensor:
        check_rotary(x, angles, n_head)
        x = value_of(x)
        if self._kernels and len(x) <= MAX_FUSED_ROWS:
            out: torch.Tensor = self._kernels.rotary(x, angles, n_head, interleaved)
            return out
        heads, n_rotated = x.unflatten(1, (n_head, -1)), angles.shape[1]  # (N, H, D)
        rotated, rest = heads[:, :, :n_rotated].float(), heads[:, :, n_rotated:]
        cos, sin = angles[:, None].chunk(2, dim=2)
        a, b = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, dim=2)
        a, b = a * cos - b * sin, b * cos + a * sin
        rotated = torch.stack([a, b], 3).flatten(2) if interleaved else torch.cat([a, b], 2)
        return torch.cat([rotated.to(heads.dtype), rest], 2).flatten(1)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        batch: Batch,
        *,
        layer: int,
        n_head: int,
        scale: float,
        window: int | None = None,
        slopes: ArrayWeight | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        step = self._steps.of(batch).of_group(batch.cache.group_of[layer])
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        n_slopes = None if slopes is None else len(slopes.values)
        cached = keys.shape[-2:]
        check_attention(q, k, v, cached, n_head=n_head, window=window, n_slopes=n_slopes, softcap=softcap)
        check_window(window, batch.cache.windows[layer], layer)
        q, k, v = (value_of(x).unflatten(1, (-1, cached[1])).to(keys.dtype) for x in (q, k, v))  # (N, H or K, D)
        scoring = Scoring(scale, window, _values(slopes), softcap)

        def decode(rows: Any) -> torch.Tensor:
            of_rows = q[rows], k[rows], v[rows], keys, values, step.places[rows], step.tables, step.lengths
            compute = self._kernels.decode_attention if self._kernels else decode_attention
            out: torch.Tensor = compute(*of_rows, scoring)
            return out

        def prefill(chunk: PromptChunk) -> torch.Tensor:
            rows = chunk.rows
            write(k[rows], v[rows], keys, values, step.places[rows])
            return prefill_attention(q[rows], keys, values, chunk.blocks, chunk.length, scoring)

        heads: torch.Tensor = attend(step, lambda: torch.empty_like(q), decode, prefill)
        return heads.flatten(1)

    def sample(self, logits: torch.Tensor | Deferred, rows: Sequence[SamplingRow]) -> list[int]:
        x = self._adjusted(value_of(logits).float(), rows)
        largest, ids = x.max(1)  # a NaN counts as the largest
        random = [i for i, row in enumerate(rows) if row.temperature]
        for part in in_parts(random, x.shape[1]):
            numbers = self._to_device([(i, *_settings(rows[i])) for i in part]).T
            at = numbers[0].long()
            some = x if len(part) == len(x) else x[at]
            max_k = max(rows[i].top_k if rows[i].top_k < x.shape[1] else 0 for i in part)
            sorts = any(rows[i].top_p < 1 for i in part)
            ids = ids.index_copy(0, at, sample_tokens(some, *numbers[1:, :, None], max_k=max_k, sorts=sorts))
        sampled: list[int] = torch.where(largest.isfinite(), ids, -1).tolist()  # the only wait for the device
        return sampled

    def _adjusted(self, x: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
        """The logits after the rows' adjustments, minus infinity where a token is not allowed."""
        adjustments = [(i, row.adjustments) for i, row in enumerate(rows) if row.adjustments is not None]
        if adjustments:
            parts = [np.stack([np.full(len(one.ids), i), *one]) for i, one in adjustments]
            numbers = self._to_device(np.concatenate(parts, axis=1))
            at = numbers[0].long(), numbers[1].long()
            values, factors = x[at], numbers[2].float()
            values = torch.where(values > 0, values / factors, values * factors).double() + numbers[3]
            x = x.index_put(at, values.float())
        allowed = allowed_tokens(rows, x.shape[1])
        if allowed is None:
            return x
        return torch.where(self._shared_mask(allowed) if allowed.ndim == 1 else self._to_device(allowed), x, -torch.inf)

    def _shared_mask(self, allowed: NDArray[np.bool_]) -> torch.Tensor:
        """A mask of all rows; copied once while it stays the same array from step to step."""
        if self._mask is None or self._mask[0] is not allowed:
            self._mask = allowed, self._to_device(allowed)
        return self._mask[1]

    def _to_device(self, values: Any) -> torch.Tensor:
        """Numbers on the device, by a copy that the host does not wait for; Python's in float64."""
        host = torch.from_numpy(np.asarray(values))
        return (host.pin_memory() if self._on.type == "cuda" else host).to(self._on, non_blocking=True)

    def from_numpy(self, values: NDArray[np.floating]) -> torch.Tensor:
        return torch.tensor(values, dtype=_TYPES[self.compute_dtype], device=self._on)

    def to_numpy(self, x: Array) -> NDArray[np.float32]:
        if self._recorder == get_ident():
            raise NotRecordableError("the forward reads an array on the host")
        values: NDArray[np.float32] = value_of(x).float().numpy(force=True)
        return values

    # Steps

    def capture(self, forward: Forward) -> Forward:
        """The forward, with decode steps on a GPU replayed from CUDA graphs, and one copy to the device per step.

        Decode steps are padded to powers of two in rows and blocks, and each shape is recorded when it first occurs.
        Recording all of them in advance, the largest first, would take the least memory, but a command that answers one
        prompt needs three of the dozens there are. Recording late costs little: all graphs of a cache share one pool,
        and rows double from one to the next, so those recorded before a larger one add at most as much again.
        """

        def run(batch: Batch) -> torch.Tensor:
            with_padding = padded(batch, batch.cache.spares)
            host = HostStep.of(batch if with_padding is None else with_padding, batch.cache.spares)
            if with_padding is None or not self._records:
                logits = value_of(forward(host.on_device(self._upload(host.numbers))))
                return logits if with_padding is None else logits[: len(batch.logit_rows)]
            numbers = self._pinned(host.numbers)

            def record(other: _Graph | None) -> _Graph:
                self._recorder = get_ident()
                try:
                    return _Graph(forward, host, numbers.to(self._on), self._stream, other)
                finally:
                    self._recorder = None

            with torch.cuda.device(self._on):
                graph = batch.cache.graphs.get(forward, host, record)
                return graph.replay(numbers)[: len(batch.ids)].clone()  # the next replay overwrites the graph's own

        return Captured(forward, run, lambda batch: value_of(forward(batch)), self.device)

    def _upload(self, numbers: Sequence[NDArray[np.integer]]) -> list[torch.Tensor]:
        """The arrays on the device, by one copy that the host does not wait for."""
        return _views(self._pinned(numbers).to(self._on, non_blocking=True), numbers)

    def _pinned(self, numbers: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """The arrays' numbers side by side, in memory that the device can copy while the host continues."""
        host = torch.from_numpy(np.concatenate([array.ravel() for array in numbers], dtype=np.int64))
        return host.pin_memory() if self._on.type == "cuda" else host

    def _index(self, numbers: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        if isinstance(numbers, torch.Tensor):
            return numbers
        return self._upload([numbers])[0]

    @contextmanager
    def _memory_for(self, what: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"{self.device} is out of memory: no room for {what}",
                remedy="keep the weights in fewer bits (--dtype bf16, int8), or use --device cpu",
            ) from None


def tensor_bytes(tensor: Tensor) -> int:
    """The bytes of a checkpoint's tensor in its file."""
    n: int = _FILE_TYPES[tensor.dtype].itemsize
    for size in tensor.shape:
        n *= size
    return n


def _zeros(dims: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(dims, dtype=dtype, device=device)
    # NumPy's zeros take memory only as they are written.
    return torch.from_numpy(np.zeros(dims, f"V{dtype.itemsize}").view(f"u{dtype.itemsize}")).view(dtype)


def quantise(matrix: torch.Tensor) -> Int8Weight:
    """(n_out, n_in) float32 -> the nearest of 255 even steps between ± the largest of each output's weights."""
    largest = matrix.abs().amax(1, keepdim=True)
    scales = torch.where(largest > 0, largest / 127, 1.0)
    return Int8Weight((matrix / scales).round().to(torch.int8), scales[:, 0])


def int8_linear(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(N, n_in) bf16 -> (N, n_out): bf16 holds the weights' integers exactly, and the scales come after the sum."""
    y = F.linear(x, values.to(x.dtype)) * scales
    return (y if bias is None else y + bias).to(x.dtype)


def compute(fused: Fused) -> torch.Tensor:
    """The operations one by one."""
    x, norm, weight, bias, activation, factor, gated, residual = fused
    if norm is not None:
        x = _normed(x, norm)
    if weight is None:
        return x
    if isinstance(weight, Int8Weight):
        y = int8_linear(x, *weight, bias)
    else:
        y = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    if activation is not None:
        y = ACTIVATION_FUNCTIONS[activation](y)
    if factor is not None:
        y = y * factor
    if gated is not None:
        y = y * gated
    return y if residual is None else residual + y


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """A norm of the last axis; an RMS norm's sums and gain are float32."""
    weight, bias, eps, offset, rms = norm
    if not rms:
        bias = None if bias is None else bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * (offset + weight.to(wide))).to(x.dtype)


def _values(weight: ArrayWeight | None) -> torch.Tensor | None:
    return None if weight is None else weight.values


def write(k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
    """Writes rows' keys and values (N, K, D) to their places in the cache."""
    keys.index_copy_(0, places, k)
    values.index_copy_(0, places, v)


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scoring: Scoring,
) -> torch.Tensor:
    """Attention of one row per sequence, its last, over its blocks: (S, H, D) -> (S, H, D).

    Args:
        q: the rows' queries.
        k, v: (S, K, D) the rows' keys and values.
        keys, values: (n_places, K, D), BLOCK_SIZE places per block; k and v are written there.
        places: (S,) the rows' places.
        tables: (S, W) each sequence's blocks.
        lengths: (S,) the positions of each sequence, its row's own being the last.
        scoring: how scores are computed.
    """
    write(k, v, keys, values, places)
    distance = torch.arange(1, tables.shape[1] * BLOCK_SIZE + 1, device=q.device) - lengths[:, None]  # (S, T)
    visible = _visible(distance, scoring.window)
    # A place may hold NaN from another sequence, which no mask removes from a sum.
    k, v = (
        torch.where(visible[:, :, None, None], x.unflatten(0, (-1, BLOCK_SIZE))[tables].flatten(1, 2), 0)
        for x in (keys, values)
    )  # (S, T, K, D)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if scoring.changes_scores:
        return _scored(q[:, :, None], k, v, distance[:, None], visible[:, None], scoring)[:, :, 0]
    mask = visible[:, None, None]
    return F.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=mask, scale=scoring.scale, enable_gqa=q.shape[1] != k.shape[1]
    )[:, :, 0]


def prefill_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: torch.Tensor, length: int, scoring: Scoring
) -> torch.Tensor:
    """Causal attention of a sequence's last n rows over its blocks: (n, H, D) -> (n, H, D).

    Args:
        q: the queries.
        keys, values: (n_places, K, D), BLOCK_SIZE places per block.
        blocks: (M,) those that hold the sequence.
        length: the sequence's positions, the n rows' own included.
        scoring: how scores are computed.
    """
    n = len(q)
    first = scoring.first_block(length - n)
    start = first * BLOCK_SIZE
    k, v = (
        x.unflatten(0, (-1, BLOCK_SIZE))[blocks[first:]].flatten(0, 1)[: length - start].transpose(0, 1)[None]
        for x in (keys, values)
    )  # (1, K, T, D)
    q = q.transpose(0, 1)[None]
    mask = causal_lower_right(n, length)
    if not scoring.is_plain:
        positions = torch.arange(start, length, device=q.device)
        distance = positions - positions[-n:, None]  # (n, T)
        mask = _visible(distance, scoring.window)
        if scoring.changes_scores:
            return _scored(q, k, v, distance, mask, scoring)[0].transpose(0, 1)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scoring.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def _visible(distance: torch.Tensor, window: int | None) -> torch.Tensor:
    """Whether a row sees a position at this distance from its own."""
    return distance <= 0 if window is None else (distance <= 0) & (distance > -window)


def _scored(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, distance: torch.Tensor, visible: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention with slopes or a softcap, in float32: (B, H, n, D) queries, (B, K, T, D) keys and values.

    Args:
        distance, visible: (n, T), or (B, n, T).
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = scoring.scale * (q.float() @ k.mT)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if scoring.slopes is not None:
        scores = scores + scoring.slopes[:, None, None] * distance.unsqueeze(-3)
    p = scores.masked_fill(~visible.unsqueeze(-3), -torch.inf).softmax(-1)
    return (p @ v).to(q.dtype)


def sample_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    *,
    max_k: int,
    sorts: bool,
) -> torch.Tensor:
    """(S, V) float32 logits, (S, 1) settings of `protocol.SamplingRow` in float64 -> (S,) tokens, without a wait.

    Args:
        max_k: the largest top_k below V; 0 if there is none.
        sorts: whether any top_p is below 1.
    """
    if max_k:
        least = logits.topk(max_k).values.gather(1, (top_k.long() - 1).clamp(0, max_k - 1))
        cuts = (top_k > 0) & (top_k < logits.shape[1])
        logits = torch.where(cuts & (logits < least), -torch.inf, logits)
    weights = ((logits - logits.amax(1, keepdim=True)).double() / temperature).exp()
    if sorts:
        order = logits.argsort(dim=1, descending=True, stable=True)
        most_likely = weights.gather(1, order)
        reached = most_likely.cumsum(1)
        needed = (reached - most_likely < top_p * reached[:, -1:]) | (top_p >= 1)
        weights = torch.zeros_like(weights).scatter(1, order, torch.where(needed, most_likely, 0))
    weights = torch.where(weights < min_p * weights.amax(1, keepdim=True), 0, weights)
    # Parallel sums may not grow at every token: only one that has a weight counts, and at least one has.
    reached = torch.where(weights > 0, weights.cumsum(1), 0)
    return (reached > uniform * reached.amax(1, keepdim=True)).int().argmax(1)


def _settings(row: SamplingRow) -> tuple[float, float, float, float, float]:
    """A row's settings; `uniform` so far below 1 that its product with a sum is below the sum."""
    return row.temperature, row.top_k, row.top_p, row.min_p, min(row.uniform, 1 - 2**-51)


ACTIVATION_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _views(numbers: torch.Tensor, like: Sequence[NDArray[np.integer]]) -> list[torch.Tensor]:
    """The arrays of these shapes from their numbers side by side."""
    parts = numbers.split([array.size for array in like])
    return [part.view(array.shape) for part, array in zip(parts, like, strict=True)]


class _Graph:
    """A decode step of one shape over one cache, recorded once and replayed: one launch instead of hundreds.

    Raises:
        NotRecordableError: the forward does something that a CUDA graph cannot record.
    """

    def __init__(
        self,
        forward: Forward,
        host: HostStep,
        numbers: torch.Tensor,
        stream: torch.cuda.Stream,
        other: _Graph | None,
    ) -> None:
        self._numbers = numbers
        step = host.on_device(_views(numbers, host.numbers))
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            value_of(forward(step))  # compiles kernels and lets libraries allocate workspaces before the recording
        self._graph = torch.cuda.CUDAGraph()
        # PyTorch cannot reuse a pool after its last graph is gone, so it is that of a live one. Other threads may keep
        # using the device meanwhile, such as a server's.
        pool = None if other is None else other._graph.pool()
        try:
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._logits = value_of(forward(step))
        except torch.AcceleratorError as error:
            raise NotRecordableError(f"a CUDA graph cannot record the forward: {str(error).splitlines()[0]}") from error
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self, numbers: torch.Tensor) -> torch.Tensor:
        """The logits; valid until the next replay of this graph or another in its pool."""
        self._numbers.copy_(numbers, non_blocking=True)
        self._graph.replay()
        return self._logits
