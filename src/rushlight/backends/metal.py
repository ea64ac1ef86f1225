"""The Metal backend: MLX's operations, its quantised weights, and decode steps through `mx.compile`.

`mlx-cpu` is the same code on MLX's CPU device: slow, and there so that what Metal computes can be tested without a Mac.

A row's results depend on that row's sequence alone, but MLX chooses other kernels for other shapes, so that they may
differ in the last places between batch sizes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.device_step import HostStep, LastStep, Recorded, Run, Step, allowed_tokens, attend, padded
from rushlight.backends.protocol import Role
from rushlight.errors import DtypeError, NonFiniteError
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVShape
    from rushlight.backends.protocol import Forward, SamplingRow, Tensor

DTYPES = ("auto", "f32", "f16", "bf16", "int8", "int4")
"""What the weights are kept in; auto is the checkpoint's own. Activations, keys and values are in the same, with int8
and int4 in f16, as are their scales: in bf16 they would cost half of int8's precision. Norms and softmax are computed
in float32."""

_FORMATS = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
"""The dtype that keeps a checkpoint's; f64 is rounded."""

_TYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16, "int8": mx.float16, "int4": mx.float16}
"""What is computed in."""

FIRST_BLOCKS = 16
"""Of a cache, before it grows."""

_BITS = {"int8": 8, "int4": 4}


class QuantisedWeight(NamedTuple):
    """A matrix in groups of neighbouring inputs, each weight scale · integer + offset: `mx.quantize`'s affine mode.

    Attributes:
        parts: packed integers (n_out, padded n_in · bits / 32), scales and offsets (n_out, n_groups).
        n_in: the inputs; beyond them the matrix is padded with zeros to whole groups.
        group: the weights in a group, 64 or 32.
        bits: 8 or 4.
    """

    parts: tuple[mx.array, mx.array, mx.array]
    n_in: int
    group: int
    bits: int


class MLXKVCache:
    """Keys and values, each one array a layer of (n_places, H, D), BLOCK_SIZE places a block.

    They grow as blocks are used, the lower ones first. The last block that there is, `spare`, takes what padding rows
    write; when the arrays grow it becomes one like the others.
    """

    def __init__(self, shape: KVShape, n_blocks: int, dtype: mx.Dtype) -> None:
        self._n_blocks = n_blocks
        self.spare = min(n_blocks, FIRST_BLOCKS)
        dims = (self.spare + 1) * BLOCK_SIZE, shape.n_kv_head, shape.head_dim
        self.keys = [mx.zeros(dims, dtype) for _ in range(shape.n_layer)]
        self.values = [mx.zeros(dims, dtype) for _ in range(shape.n_layer)]
        self.compiled: Recorded[Callable[[list[mx.array]], mx.array]] = Recorded()
        """Each writes this cache, and goes with it."""

    def hold(self, batch: Batch) -> None:
        """Makes room for the batch's blocks, and for as many again."""
        most = int(batch.block_tables[:, : int(batch.positions.max()) // BLOCK_SIZE + 1].max())
        if most < self.spare:
            return
        spare = min(self._n_blocks, 2 * (most + 1))
        more = (spare - self.spare) * BLOCK_SIZE
        for arrays in (self.keys, self.values):
            arrays[:] = [mx.concatenate([x, mx.zeros((more, *x.shape[1:]), x.dtype)]) for x in arrays]
        self.spare = spare


class MLXBackend:
    """Every operation in MLX. Implements `protocol.Backend`.

    Args:
        device: metal or mlx-cpu; MLX computes there from now on in the whole process, and on the CPU compiles nothing.
        dtype: of the weights, a word of DTYPES.

    Raises:
        DtypeError: there is no such dtype here.
    """

    def __init__(self, device: str = "metal", dtype: str = "auto") -> None:
        if dtype not in DTYPES:
            raise DtypeError(f"the {device} backend does not compute in {dtype}", expected=" or ".join(DTYPES))
        mx.set_default_device(mx.Device(mx.cpu if device == "mlx-cpu" else mx.gpu))
        if device == "mlx-cpu":
            mx.disable_compile()  # on a CPU it runs a C++ compiler, which may not be there
        self.device = self.arithmetic = device
        self._requested = dtype
        self._placed: set[str] = set()
        self.dtype = "f32" if dtype == "auto" else dtype
        """What the weights are kept in; with auto, what they turn out to be as they are placed."""
        self._steps = LastStep(_upload)

    # Weights

    def load_weight(self, tensor: Tensor, role: Role) -> mx.array | QuantisedWeight:
        """Raises NonFiniteError if a value is not finite in the weight's dtype."""
        word = _FORMATS[tensor.dtype] if self._requested == "auto" else self._requested
        if word == "int4" and role is Role.TABLE:
            word = "int8"  # a table is most often the head too, and there four bits cost the most quality
        quantised = word in _BITS and role is not Role.VECTOR
        kept = "f32" if quantised else "f16" if word in _BITS else word
        values = _read(tensor).astype(_TYPES[kept])
        if not mx.isfinite(values).all():
            raise NonFiniteError(f"a weight is not a finite {kept} number", tensor=tensor.name)
        if role is Role.VECTOR:
            return values
        if self._requested == "auto":
            self._placed.add(word)
            self.dtype = "/".join(sorted(self._placed))
        if role is Role.CONV1D:
            values = values.T
        elif role is Role.CONVOLUTION:
            values = values.transpose(0, 2, 1).reshape(len(values), -1)  # (out, size·in)
        if quantised:
            return _quantise(values, _BITS[word])
        values = mx.contiguous(values)
        mx.eval(values)
        return values

    def finish_loading(self) -> None:
        """Nothing: a tensor is there when it has been placed."""

    def tie(self, table: mx.array | QuantisedWeight) -> mx.array | QuantisedWeight:
        return table  # (V, C) is (out, in)

    def kv_cache(self, shape: KVShape, n_blocks: int) -> MLXKVCache:
        return MLXKVCache(shape, n_blocks, self._type)

    @property
    def _type(self) -> mx.Dtype:
        """What is computed in; where dtypes are mixed, the one that holds them all."""
        return _TYPES.get(self.dtype, mx.float32)

    def kv_block_bytes(self, shape: KVShape) -> int:
        value_bytes: int = self._type.size
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * value_bytes

    def available_bytes(self) -> int:
        if self.device == "mlx-cpu":
            return available_bytes()
        most: int = mx.device_info()["max_recommended_working_set_size"]
        return max(0, most - int(mx.get_active_memory()))

    # Operations

    def embedding(self, ids: NDArray[np.int32] | mx.array, table: mx.array | QuantisedWeight) -> mx.array:
        at = mx.array(ids)
        if isinstance(table, QuantisedWeight):
            rows = (part[at] for part in table.parts)
            return mx.dequantize(*rows, group_size=table.group, bits=table.bits)[:, : table.n_in]
        return table[at]

    def linear(self, x: mx.array, weight: mx.array | QuantisedWeight, bias: mx.array | None) -> mx.array:
        if isinstance(weight, QuantisedWeight):
            padding = -weight.n_in % weight.group
            y = mx.quantized_matmul(
                mx.pad(x, ((0, 0), (0, padding))) if padding else x,
                *weight.parts,
                transpose=True,
                group_size=weight.group,
                bits=weight.bits,
            )
            return y if bias is None else y + bias
        return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)

    def layer_norm(self, x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, eps)

    def activation(self, x: mx.array, name: str) -> mx.array:
        return ACTIVATION_FUNCTIONS[name](x.astype(mx.float32)).astype(x.dtype)

    def split(self, x: mx.array, n: int) -> Sequence[mx.array]:
        parts: Sequence[mx.array] = mx.split(x, n, axis=-1)
        return parts

    def take(self, x: mx.array, rows: NDArray[np.int32] | mx.array) -> mx.array:
        return x[mx.array(rows)]

    def unfold(self, x: mx.array, rows: NDArray[np.int32]) -> mx.array:
        at = mx.array(rows)
        zero = mx.array(0, x.dtype)
        return mx.where(at[:, :, None] >= 0, x[mx.maximum(at, 0)], zero).reshape(len(rows), -1)

    def attention(
        self, q: mx.array, k: mx.array, v: mx.array, batch: Batch, *, layer: int, n_head: int, scale: float
    ) -> mx.array:
        cache = batch.cache
        if not isinstance(batch, Step):
            cache.hold(batch)
        step = self._steps.of(batch)
        q, k, v = (x.reshape(len(x), n_head, -1).astype(cache.keys[layer].dtype) for x in (q, k, v))  # (N, H, D)
        keys, values = cache.keys[layer], cache.values[layer]
        keys[step.slots], values[step.slots] = k, v

        def decode(rows: Any) -> mx.array:
            return decode_attention(q[rows], keys, values, step.tables, step.lengths, scale)

        def prefill(run: Run) -> mx.array:
            return prefill_attention(q[run.rows], keys, values, run.blocks, run.length, scale)

        return attend(step, lambda: mx.zeros_like(q), decode, prefill).reshape(len(q), -1)

    def sample(self, logits: mx.array, draws: Sequence[SamplingRow]) -> list[int]:
        x = _changed(logits.astype(mx.float32), draws)
        most, ids = mx.max(x, axis=1), mx.argmax(x, axis=1)
        sampled = [row for row, draw in enumerate(draws) if draw.temperature]
        if sampled:
            rows = mx.array(sampled)
            settings = mx.array([_settings(draws[row]) for row in sampled]).T[:, :, None]
            ids[rows] = draw_tokens(x[rows], *settings)
        usable = mx.isfinite(most) & ~mx.isnan(x).any(axis=1)
        chosen: list[int] = mx.where(usable, ids.astype(mx.int32), -1).tolist()
        return chosen

    def from_numpy(self, values: NDArray[np.floating]) -> mx.array:
        return mx.array(values, self._type)

    def to_numpy(self, x: mx.array) -> NDArray[np.float32]:
        return np.array(x.astype(mx.float32))

    # Steps

    def capture(self, forward: Forward) -> Forward:
        """`forward`, evaluated once a step, with decode steps compiled.

        Decode steps are padded to powers of two in rows and blocks, so that few shapes are traced.
        """

        def run(batch: Batch) -> mx.array:
            cache = batch.cache
            cache.hold(batch)
            whole = padded(batch, cache.spare)
            host = HostStep.of(batch if whole is None else whole, cache.spare)
            numbers = _upload(host.numbers)
            if whole is None:
                logits = forward(host.on_device(numbers))
            else:
                logits = cache.compiled.of(forward, host, lambda _: _compile(forward, host, cache))(numbers)
            mx.async_eval(logits, cache.keys, cache.values)
            return logits[: len(batch.logit_rows)]

        return run


def _changed(x: mx.array, draws: Sequence[SamplingRow]) -> mx.array:
    """The logits after the draws' changes, and minus infinity where a token is not allowed."""
    changes = [(row, draw.adjustments) for row, draw in enumerate(draws) if draw.adjustments is not None]
    if changes:
        rows = mx.array(np.concatenate([np.full(len(one.ids), row) for row, one in changes]))
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite
            ids, factors, offsets = (
                mx.array(np.concatenate([one[i] for _, one in changes]).astype(kind))
                for i, kind in enumerate((np.int32, np.float32, np.float32))
            )
        values = x[rows, ids]
        values = mx.where(values > 0, values / factors, values * factors) + offsets
        x = x + 0  # a copy: the logits stay as they are
        x[rows, ids] = values
    allowed = allowed_tokens(draws, x.shape[1])
    return x if allowed is None else mx.where(mx.array(allowed), x, -mx.inf)


def draw_tokens(
    logits: mx.array, temperature: mx.array, top_k: mx.array, top_p: mx.array, min_p: mx.array, share: mx.array
) -> mx.array:
    """(S, V) float32 logits, (S, 1) settings of `protocol.SamplingRow` -> (S,) tokens."""
    n = logits.shape[1]
    order = mx.argsort(-logits, axis=1)
    last = mx.where(top_k > 0, mx.minimum(top_k, n), n).astype(mx.int32) - 1
    least = mx.take_along_axis(mx.take_along_axis(logits, order, axis=1), last, axis=1)
    logits = mx.where(logits < least, -mx.inf, logits)
    weights = mx.exp((logits - mx.max(logits, axis=1, keepdims=True)) / temperature)
    likeliest = mx.take_along_axis(weights, order, axis=1)
    reached = mx.cumsum(likeliest, axis=1)
    needed = (reached - likeliest < top_p * reached[:, -1:]) | (top_p >= 1)
    weights = mx.put_along_axis(mx.zeros_like(weights), order, mx.where(needed, likeliest, 0), axis=1)
    weights = mx.where(weights < min_p * mx.max(weights, axis=1, keepdims=True), 0, weights)
    # Parallel sums need not grow at every place: only a token that has a weight counts, and one of them always does.
    reached = mx.where(weights > 0, mx.cumsum(weights, axis=1), 0)
    return mx.argmax(reached > share * mx.max(reached, axis=1, keepdims=True), axis=1)


def _settings(draw: SamplingRow) -> tuple[float, float, float, float, float]:
    """The numbers that a token is drawn by, where float32 rounds none of them to 0 or 1."""
    least, most = 2**-100, 1 - 2**-22
    return max(draw.temperature, least), min(draw.top_k, 2**30), draw.top_p, draw.min_p, min(draw.uniform, most)


def _upload(numbers: Sequence[NDArray[np.integer]]) -> list[mx.array]:
    return [mx.array(array) for array in numbers]


def _compile(forward: Forward, host: HostStep, cache: MLXKVCache) -> Callable[[list[mx.array]], mx.array]:
    """A decode step of one shape over one cache, from its numbers. Weights are constants of what is compiled."""
    state = [cache.keys, cache.values]

    def step(numbers: list[mx.array]) -> mx.array:
        return forward(host.on_device(numbers))

    compiled: Callable[[list[mx.array]], mx.array] = mx.compile(step, inputs=state, outputs=state)
    return compiled


def decode_attention(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scale: float
) -> mx.array:
    """Attention of one row a sequence over its blocks: (S, H, D) queries -> (S, H, D).

    Args:
        q: the queries.
        keys, values: (n_places, H, D), BLOCK_SIZE places a block.
        tables: (S, W) each sequence's blocks.
        lengths: (S,) how many of their places each sees.
        scale: of the scores.
    """
    n, width = tables.shape
    seen = mx.arange(width * BLOCK_SIZE) < lengths[:, None]  # (S, T)
    # What a place held before may be NaN, which no mask takes out of a sum.
    k, v = (
        mx.where(seen[:, :, None, None], _blocks(x, tables).reshape(n, -1, *x.shape[1:]), mx.array(0, x.dtype))
        for x in (keys, values)
    )  # (S, T, H, D)
    return _attention(q[:, :, None], k.swapaxes(1, 2), v.swapaxes(1, 2), scale, seen[:, None, None])[:, :, 0]


def prefill_attention(
    q: mx.array, keys: mx.array, values: mx.array, blocks: mx.array, length: int, scale: float
) -> mx.array:
    """Causal attention of a sequence's last n rows over its blocks: (n, H, D) -> (n, H, D).

    Args:
        q: the queries.
        keys, values: (n_places, H, D), BLOCK_SIZE places a block.
        blocks: (M,) those that hold the sequence.
        length: how many positions it has, the n rows' own included.
        scale: of the scores.
    """
    k, v = (_blocks(x, blocks).reshape(-1, *x.shape[1:])[:length] for x in (keys, values))  # (T, H, D)
    q, k, v = (x.swapaxes(0, 1)[None] for x in (q, k, v))  # (1, H, ·, D)
    return _attention(q, k, v, scale, "causal")[0].swapaxes(0, 1)


def _attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str) -> mx.array:
    """(B, H, n, D) queries, (B, H, T, D) keys and values -> (B, H, n, D), the scores in float32."""
    kept = q.dtype
    if mx.default_device() == mx.Device(mx.cpu):  # where MLX has no kernel of its own, and rounds the scores
        q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask).astype(kept)


def _blocks(x: mx.array, blocks: mx.array) -> mx.array:
    """(n_places, H, D), some blocks -> those blocks' places, (..., BLOCK_SIZE, H, D)."""
    return x.reshape(-1, BLOCK_SIZE, *x.shape[1:])[blocks]


def _read(tensor: Tensor) -> mx.array:
    """A checkpoint's tensor as it is, float64 rounded to float32: MLX has no float64 on a GPU."""
    if tensor.dtype == "F64":
        return mx.asarray(tensor.float32())
    file_type = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype]
    values = np.empty(tensor.shape, file_type)
    tensor.read_into(values.reshape(-1).view(np.uint8), 0)
    array = mx.asarray(values)  # on a GPU that shares the memory, not copied
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array


def _quantise(matrix: mx.array, bits: int) -> QuantisedWeight:
    """(n_out, n_in), each group of 64 inputs, or 32 where 64 does not divide them, from its least to its greatest."""
    n_in = matrix.shape[1]
    group = 64 if n_in % 64 == 0 else 32
    parts = mx.quantize(mx.pad(matrix, ((0, 0), (0, -n_in % group))), group_size=group, bits=bits)
    parts = tuple(part.astype(mx.float16) if part.dtype == mx.float32 else part for part in parts)
    mx.eval(parts)
    return QuantisedWeight(parts, n_in, group, bits)


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _gelu_erf(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5)))


ACTIVATION_FUNCTIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "relu": lambda x: mx.maximum(x, 0),
    "silu": lambda x: x * mx.sigmoid(x),
    "quick_gelu": lambda x: x * mx.sigmoid(1.702 * x),
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
}
"""Over float32 arrays."""
