"""The CUDA backend: PyTorch's operations, decode steps recorded as CUDA graphs, attention over blocks in Triton.

`torch-cpu` is the same code on PyTorch's CPU device, without graphs and Triton: slow, and there so that everything but
those two can be tested where there is no GPU.

A row's results depend on that row's sequence alone, but PyTorch chooses other kernels for other shapes, so that they
may differ in the last places between batch sizes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, PyTorch's own name for it
from torch.nn.attention.bias import causal_lower_right

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.device_step import HostStep, LastStep, Recorded, Run, allowed_tokens, attend, padded
from rushlight.backends.fusion import Deferred, Fused, Norm, value_of
from rushlight.backends.protocol import Role
from rushlight.errors import DeviceError, DtypeError, NonFiniteError
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVShape
    from rushlight.backends.protocol import Array, Forward, SamplingRow, Tensor

DTYPES = ("auto", "f32", "f16", "bf16", "int8")
"""What the weights are kept in; auto is the checkpoint's own. Activations, keys and values are in the same, with int8
in bf16. Norms, softmax and sums are computed in float32."""

_FORMATS = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""The dtype that keeps a checkpoint's; f64 is rounded."""

_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "int8": torch.bfloat16}
"""What is computed in."""

MAX_FUSED_ROWS = 16
"""Up to so many rows a launch takes as long as what it launches, and neighbouring operations become one. Beyond them
PyTorch's products win, which read each weight once for many rows."""

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


class TorchKVCache:
    """Keys and values, each one tensor a layer of (n_places, H, D), BLOCK_SIZE places a block.

    One block more than asked for, `spare`, takes what padding rows write.
    """

    def __init__(self, shape: KVShape, n_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        dims = (n_blocks + 1) * BLOCK_SIZE, shape.n_kv_head, shape.head_dim
        self.spare = n_blocks
        self.keys = [_zeros(dims, dtype, device) for _ in range(shape.n_layer)]
        self.values = [_zeros(dims, dtype, device) for _ in range(shape.n_layer)]
        self.graphs: Recorded[_Graph] = Recorded()
        """Each holds the cache's addresses, and goes with it."""


class TorchBackend:
    """Every operation in PyTorch. Implements `protocol.Backend`.

    Args:
        device: cuda, cuda:1 and so on, or torch-cpu.
        dtype: of the weights, a word of DTYPES.
        threads: of torch-cpu, and then of all that this process does with PyTorch; None leaves them as they are.

    Raises:
        DtypeError: there is no such dtype here.
        DeviceError: PyTorch cannot use the GPU.
    """

    def __init__(self, device: str = "cuda", dtype: str = "auto", *, threads: int | None = None) -> None:
        if dtype not in DTYPES:
            raise DtypeError(f"the {device} backend does not compute in {dtype}", expected=" or ".join(DTYPES))
        self.device = self.arithmetic = device
        self._requested = dtype
        self._placed: set[str] = set()
        self.dtype = "f32" if dtype == "auto" else dtype
        """What the weights are kept in; with auto, what they turn out to be as they are placed."""
        self._on = torch.device("cpu" if device == "torch-cpu" else device)
        self._steps = LastStep(self._upload)
        self._records = self._on.type == "cuda"
        self._kernels: Any = None
        self._allowed: tuple[NDArray[np.bool_], torch.Tensor] | None = None
        if self._on.type == "cuda":
            self._start_cuda()
        elif threads is not None:
            torch.set_num_threads(threads)

    def _start_cuda(self) -> None:
        try:
            torch.zeros(1, device=self._on)
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(
                f"PyTorch {torch.__version__} cannot use {self.device}: {str(error).splitlines()[0]}",
                remedy="update the NVIDIA driver, or install a PyTorch that is made for it: https://pytorch.org",
            ) from None
        # Sums stay in float32 also where a product is cut into parts that are added at the end.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        with torch.cuda.device(self._on):
            self._stream = torch.cuda.Stream()
        try:
            from rushlight.backends import cuda_kernels
        except ImportError:  # PyTorch for Windows comes without Triton
            return
        self._kernels = cuda_kernels

    # Weights

    def load_weight(self, tensor: Tensor, role: Role) -> torch.Tensor | Int8Weight:
        """Raises NonFiniteError if a value is not finite in the weight's dtype, DeviceError if memory runs out."""
        word = _FORMATS[tensor.dtype] if self._requested == "auto" else self._requested
        raw = torch.empty(tensor_bytes(tensor), dtype=torch.uint8)
        tensor.read_into(raw.numpy(), 0)
        with self._memory_for(tensor.name):
            values = raw.view(_FILE_TYPES[tensor.dtype]).reshape(tensor.shape).to(self._on)
            quantised = word == "int8" and role is not Role.VECTOR
            values = values.to(torch.float32 if quantised else _TYPES[word])
            if not torch.isfinite(values).all():
                kept = "f32" if quantised else "bf16" if word == "int8" else word
                raise NonFiniteError(f"a weight is not a finite {kept} number", tensor=tensor.name)
            if role is Role.VECTOR:
                return values
            if self._requested == "auto":
                self._placed.add(word)
                self.dtype = "/".join(sorted(self._placed))
            if role is Role.CONV1D:
                values = values.T.contiguous()
            elif role is Role.CONVOLUTION:
                values = values.transpose(1, 2).flatten(1)  # (out, size·in)
            return quantise(values) if quantised else values

    def finish_loading(self) -> None:
        """Nothing: a tensor is there when it has been placed."""

    def tie(self, table: torch.Tensor | Int8Weight) -> torch.Tensor | Int8Weight:
        return table  # (V, C) is (out, in)

    def kv_cache(self, shape: KVShape, n_blocks: int) -> TorchKVCache:
        """Raises DeviceError if memory runs out."""
        with self._memory_for(f"{n_blocks} blocks of keys and values"):
            return TorchKVCache(shape, n_blocks, self._type, self._on)

    @property
    def _type(self) -> torch.dtype:
        """What is computed in; where dtypes are mixed, the one that holds them all."""
        return _TYPES.get(self.dtype, torch.float32)

    def kv_block_bytes(self, shape: KVShape) -> int:
        value_bytes: int = self._type.itemsize
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * value_bytes

    def available_bytes(self) -> int:
        if self._on.type == "cpu":
            return available_bytes()
        # What PyTorch holds for later use is free as well.
        kept = torch.cuda.memory_reserved(self._on) - torch.cuda.memory_allocated(self._on)
        return int(torch.cuda.mem_get_info(self._on)[0] + kept)

    # Operations

    def embedding(self, ids: NDArray[np.int32] | torch.Tensor, table: torch.Tensor | Int8Weight) -> torch.Tensor:
        at = self._index(ids)
        if isinstance(table, Int8Weight):
            return (table.values[at] * table.scales[at, None]).to(torch.bfloat16)
        return F.embedding(at, table)

    def linear(self, x: Array, weight: torch.Tensor | Int8Weight, bias: torch.Tensor | None) -> Array:
        normed = x.normed() if isinstance(x, Deferred) else None
        return self._fuse((normed or Fused(value_of(x)))._replace(weight=weight, bias=bias))

    def layer_norm(self, x: Array, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Array:
        return self._fuse(Fused(value_of(x), Norm(weight, bias, eps)))

    def activation(self, x: Array, name: str) -> Array:
        product = x.product() if isinstance(x, Deferred) else None
        if product is not None and product.activation is None:
            return self._fuse(product._replace(activation=name))
        return ACTIVATION_FUNCTIONS[name](value_of(x))

    def _fuse(self, fused: Fused) -> Array:
        """With few rows, what waits for the operation after it; else its value."""
        return Deferred(fused, self._compute) if len(fused.x) <= MAX_FUSED_ROWS else compute(fused)

    def _compute(self, fused: Fused) -> torch.Tensor:
        return self._kernels.linear(fused) if self._kernels and fused.weight is not None else compute(fused)

    def split(self, x: Array, n: int) -> Sequence[torch.Tensor]:
        parts: Sequence[torch.Tensor] = value_of(x).chunk(n, dim=-1)
        return parts

    def take(self, x: Array, rows: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        return value_of(x).index_select(0, self._index(rows))

    def unfold(self, x: Array, rows: NDArray[np.int32]) -> torch.Tensor:
        at = self._index(rows)
        return torch.where(at[:, :, None] >= 0, value_of(x)[at.clamp(min=0)], 0).flatten(1)

    def attention(
        self, q: Array, k: Array, v: Array, batch: Batch, *, layer: int, n_head: int, scale: float
    ) -> torch.Tensor:
        step = self._steps.of(batch)
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        q, k, v = (value_of(x).unflatten(-1, (n_head, -1)).to(keys.dtype) for x in (q, k, v))  # (N, H, D)
        attention = self._kernels.decode_attention if self._kernels else decode_attention

        def decode(rows: Any) -> torch.Tensor:
            of_rows = q[rows], k[rows], v[rows], keys, values, step.slots[rows]
            out: torch.Tensor = attention(*of_rows, step.tables, step.lengths, scale)
            return out

        def prefill(run: Run) -> torch.Tensor:
            rows = run.rows
            write(k[rows], v[rows], keys, values, step.slots[rows])
            return prefill_attention(q[rows], keys, values, run.blocks, run.length, scale)

        heads: torch.Tensor = attend(step, lambda: torch.empty_like(q), decode, prefill)
        return heads.flatten(1)

    def sample(self, logits: torch.Tensor | Deferred, draws: Sequence[SamplingRow]) -> list[int]:
        x = self._changed(value_of(logits).float(), draws)
        most, ids = x.max(1)  # a NaN counts as the greatest
        sampled = [row for row, draw in enumerate(draws) if draw.temperature]
        if sampled:
            numbers = self._sent([(row, *_settings(draws[row])) for row in sampled]).T
            rows = numbers[0].long()
            some = x if len(sampled) == len(x) else x[rows]
            most_k = max(draws[row].top_k if draws[row].top_k < x.shape[1] else 0 for row in sampled)
            sorts = any(draws[row].top_p < 1 for row in sampled)
            ids = ids.index_copy(0, rows, draw_tokens(some, *numbers[1:, :, None], most_k=most_k, sorts=sorts))
        chosen: list[int] = torch.where(most.isfinite(), ids, -1).tolist()  # the one wait for the device
        return chosen

    def _changed(self, x: torch.Tensor, draws: Sequence[SamplingRow]) -> torch.Tensor:
        """The logits after the draws' changes, and minus infinity where a token is not allowed."""
        changes = [(row, draw.adjustments) for row, draw in enumerate(draws) if draw.adjustments is not None]
        if changes:
            parts = [np.stack([np.full(len(one.ids), row), *one]) for row, one in changes]
            numbers = self._sent(np.concatenate(parts, axis=1))
            at = numbers[0].long(), numbers[1].long()
            values, factors = x[at], numbers[2].float()
            values = torch.where(values > 0, values / factors, values * factors).double() + numbers[3]
            x = x.index_put(at, values.float())
        allowed = allowed_tokens(draws, x.shape[1])
        if allowed is None:
            return x
        return torch.where(self._mask(allowed) if allowed.ndim == 1 else self._sent(allowed), x, -torch.inf)

    def _mask(self, allowed: NDArray[np.bool_]) -> torch.Tensor:
        """A mask that is the same step after step, sent once."""
        if self._allowed is None or self._allowed[0] is not allowed:
            self._allowed = allowed, self._sent(allowed)
        return self._allowed[1]

    def _sent(self, values: Any) -> torch.Tensor:
        """Numbers on the device, by a copy that the host does not wait for; those of Python in float64."""
        host = torch.from_numpy(np.asarray(values))
        return (host.pin_memory() if self._on.type == "cuda" else host).to(self._on, non_blocking=True)

    def from_numpy(self, values: NDArray[np.floating]) -> torch.Tensor:
        return torch.tensor(values, dtype=self._type, device=self._on)

    def to_numpy(self, x: Array) -> NDArray[np.float32]:
        values: NDArray[np.float32] = value_of(x).float().numpy(force=True)
        return values

    # Steps

    def capture(self, forward: Forward) -> Forward:
        """`forward`, with decode steps on a GPU replayed from CUDA graphs, and one copy to the device a step.

        Decode steps are padded to powers of two in rows and blocks, and each shape is recorded when it first occurs.
        To record all of them ahead, the largest first, would take the least memory, but a command that answers one
        prompt needs three of the dozens that there are. What comes late costs little: all graphs of a cache share one
        pool, rows double from one to the next, and so those recorded before a larger one add at most as much again.
        """

        def run(batch: Batch) -> torch.Tensor:
            whole = padded(batch, batch.cache.spare)
            host = HostStep.of(batch if whole is None else whole, batch.cache.spare)
            if whole is None or not self._records:
                return value_of(forward(host.on_device(self._upload(host.numbers))))[: len(batch.logit_rows)]
            numbers = self._pinned(host.numbers)

            def record(other: _Graph | None) -> _Graph:
                return _Graph(forward, host, numbers.to(self._on), self._stream, other)

            with torch.cuda.device(self._on):
                graph = batch.cache.graphs.of(forward, host, record)
                return graph.replay(numbers)[: len(batch.ids)].clone()  # the graph's own are written over

        return run

    def _upload(self, numbers: Sequence[NDArray[np.integer]]) -> list[torch.Tensor]:
        """All of them on the device, in one copy that the host does not wait for."""
        return _views(self._pinned(numbers).to(self._on, non_blocking=True), numbers)

    def _pinned(self, numbers: Sequence[NDArray[np.integer]]) -> torch.Tensor:
        """One after another on the host, where the device can copy them from while the host goes on."""
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
                f"{self.device} has no memory left for {what}",
                remedy="keep the weights in fewer bits (--dtype bf16, int8), or use --device cpu",
            ) from None


def tensor_bytes(tensor: Tensor) -> int:
    """How many bytes a checkpoint's tensor has in its file."""
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
    """One operation after another."""
    x, norm, weight, bias, activation, residual = fused
    if norm is not None:
        x = F.layer_norm(x, x.shape[1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
    if weight is None:
        return x
    if isinstance(weight, Int8Weight):
        y = int8_linear(x, *weight, bias)
    else:
        y = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    if activation is not None:
        y = ACTIVATION_FUNCTIONS[activation](y)
    return y if residual is None else residual + y


def write(k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
    """Puts rows' keys and values (N, H, D) into the cache, at their places."""
    keys.index_copy_(0, slots, k)
    values.index_copy_(0, slots, v)


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of one row a sequence, which is its last, over its blocks: (S, H, D) -> (S, H, D).

    Args:
        q, k, v: the rows' queries, keys and values.
        keys, values: (n_places, H, D), BLOCK_SIZE places a block; k and v are written there.
        slots: (S,) the rows' places.
        tables: (S, W) each sequence's blocks.
        lengths: (S,) how many of their places each sees, its row's own the last of them.
        scale: of the scores.
    """
    write(k, v, keys, values, slots)
    seen = torch.arange(tables.shape[1] * BLOCK_SIZE, device=q.device) < lengths[:, None]  # (S, T)
    # What a place held before may be NaN, which no mask takes out of a sum.
    k, v = (
        torch.where(seen[:, :, None, None], x.unflatten(0, (-1, BLOCK_SIZE))[tables].flatten(1, 2), 0).transpose(1, 2)
        for x in (keys, values)
    )  # (S, H, T, D)
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=seen[:, None, None], scale=scale)[:, :, 0]


def prefill_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, blocks: torch.Tensor, length: int, scale: float
) -> torch.Tensor:
    """Causal attention of a sequence's last n rows over its blocks: (n, H, D) -> (n, H, D).

    Args:
        q: the queries.
        keys, values: (n_places, H, D), BLOCK_SIZE places a block.
        blocks: (M,) those that hold the sequence.
        length: how many positions it has, the n rows' own included.
        scale: of the scores.
    """
    k, v = (
        x.unflatten(0, (-1, BLOCK_SIZE))[blocks].flatten(0, 1)[:length].transpose(0, 1)[None] for x in (keys, values)
    )  # (1, H, T, D)
    mask = causal_lower_right(len(q), length)
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=mask, scale=scale)[0].transpose(0, 1)


def draw_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    share: torch.Tensor,
    *,
    most_k: int,
    sorts: bool,
) -> torch.Tensor:
    """(S, V) float32 logits, (S, 1) settings of `protocol.SamplingRow` in float64 -> (S,) tokens, without a wait.

    Args:
        most_k: the greatest top_k below V; 0 if there is none.
        sorts: whether a top_p is below 1.
    """
    if most_k:
        least = logits.topk(most_k).values.gather(1, (top_k.long() - 1).clamp(0, most_k - 1))
        cuts = (top_k > 0) & (top_k < logits.shape[1])
        logits = torch.where(cuts & (logits < least), -torch.inf, logits)
    weights = ((logits - logits.amax(1, keepdim=True)).double() / temperature).exp()
    if sorts:
        order = logits.argsort(dim=1, descending=True, stable=True)
        likeliest = weights.gather(1, order)
        reached = likeliest.cumsum(1)
        needed = (reached - likeliest < top_p * reached[:, -1:]) | (top_p >= 1)
        weights = torch.zeros_like(weights).scatter(1, order, torch.where(needed, likeliest, 0))
    weights = torch.where(weights < min_p * weights.amax(1, keepdim=True), 0, weights)
    # Parallel sums need not grow at every place: only a token that has a weight counts, and one of them always does.
    reached = torch.where(weights > 0, weights.cumsum(1), 0)
    return (reached > share * reached.amax(1, keepdim=True)).int().argmax(1)


def _settings(draw: SamplingRow) -> tuple[float, float, float, float, float]:
    """The numbers that a token is drawn by, the share so far below 1 that its product with a sum is below the sum."""
    return draw.temperature, draw.top_k, draw.top_p, draw.min_p, min(draw.uniform, 1 - 2**-51)


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
    """One array after another out of a copy of them all."""
    parts = numbers.split([array.size for array in like])
    return [part.view(array.shape) for part, array in zip(parts, like, strict=True)]


class _Graph:
    """A decode step of one shape over one cache, recorded once and replayed: one launch in place of hundreds."""

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
            value_of(forward(step))  # kernels are compiled, and libraries take their workspaces, before the recording
        self._graph = torch.cuda.CUDAGraph()
        # The pool of a graph that lives: PyTorch does not open one again whose graphs are all gone. Other threads, such
        # as a server's, may go on using the device.
        pool = None if other is None else other._graph.pool()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._logits = value_of(forward(step))
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self, numbers: torch.Tensor) -> torch.Tensor:
        """The logits, until the next replay of this graph, or of another in its pool."""
        self._numbers.copy_(numbers, non_blocking=True)
        self._graph.replay()
        return self._logits
