"""The Metal backend: MLX's operations, its quantised weights, and decode steps through `mx.compile`.

`mlx-cpu` is the same code on MLX's CPU device. It is slow, and lets what Metal computes be tested without a Mac.

A row's results depend only on its own sequence, but MLX chooses different kernels for different shapes, so they may
differ in the last places between batch sizes.
"""

from __future__ import annotations

import math
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from rushlight.backends.arguments import check_attention, check_join, check_norm, check_rotary, check_window, part_sizes
from rushlight.backends.batch import BLOCK_SIZE, blocks_of_groups
from rushlight.backends.device_step import (
    Captured,
    HostStep,
    LastStep,
    PromptChunk,
    Recordings,
    Scoring,
    Step,
    allowed_tokens,
    attend,
    in_parts,
    padded,
)
from rushlight.backends.dtypes import DtypePolicy
from rushlight.backends.protocol import NotRecordableError, Role
from rushlight.backends.weights import ArrayWeight
from rushlight.errors import NonFiniteError
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVGroup, KVShape
    from rushlight.backends.protocol import Forward, SamplingRow, Tensor

COMPUTE_DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "f16", "int4": "f16"}
"""Weight dtype -> the dtype of activations, keys and values. With int8 and int4 weights it is f16, and so are their
scales: in bf16 those would cost half of int8's precision. Norms and softmax are computed in float32."""

_TYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}

FIRST_BLOCKS = 16
"""The blocks of a new cache."""

_EVAL_IN_TRACE = "during function transformations"
"""In MLX's error when a traced function needs the value of an array."""

_BITS = {"int8": 8, "int6": 6, "int4": 4}


class QuantisedWeight(NamedTuple):
    """A matrix in groups of neighbouring inputs, each weight scale · integer + offset: `mx.quantize`'s affine mode.

    Attributes:
        parts: packed integers (n_out, padded n_in · bits / 32), scales and offsets (n_out, n_groups).
        n_in: the inputs; beyond them the matrix is padded with zeros to whole groups.
        group: the weights in a group, 64 or 32.
        bits: 8, 6 or 4.
    """

    parts: tuple[mx.array, mx.array, mx.array]
    n_in: int
    group: int
    bits: int

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class MLXKVCache:
    """Keys and values, each one (n_places, K, D) array per layer, BLOCK_SIZE places per block.

    The arrays grow as blocks are used, the lower ones first. The last allocated block of each group of layers, its
    spare one, is what padding rows write to; when the arrays grow, it becomes an ordinary block.
    """

    def __init__(self, shape: KVShape, n_blocks: Sequence[int], dtype: mx.Dtype) -> None:
        self.group_of = shape.group_of
        self.windows = shape.windows or (None,) * shape.n_layer
        self._n_blocks = n_blocks
        self.spares = [min(n, FIRST_BLOCKS) for n in n_blocks]
        dims = [((self.spares[g] + 1) * BLOCK_SIZE, shape.n_kv_head, shape.head_dim) for g in self.group_of]
        self.keys = [mx.zeros(each, dtype) for each in dims]
        self.values = [mx.zeros(each, dtype) for each in dims]
        self.compiled: Recordings[Callable[[list[mx.array]], mx.array]] = Recordings()
        """They write to this cache, and are dropped with it."""

    def reserve(self, batch: Batch) -> None:
        """Allocates the batch's blocks if they are not there yet, and as many again."""
        ends = (batch.positions[batch.row_starts[1:] - 1] // BLOCK_SIZE + 1).tolist()
        for group, spare in enumerate(self.spares):
            used = [table[:end] for table, end in zip(batch.tables(group), ends, strict=True)]
            last = int(np.concatenate(used).max())
            if last < spare:
                continue
            self.spares[group] = min(self._n_blocks[group], 2 * (last + 1))
            more = (self.spares[group] - spare) * BLOCK_SIZE
            for arrays in (self.keys, self.values):
                arrays[:] = [
                    mx.concatenate([x, mx.zeros((more, *x.shape[1:]), x.dtype)]) if of == group else x
                    for x, of in zip(arrays, self.group_of, strict=True)
                ]


class MLXBackend:
    """Every operation in MLX. Implements `protocol.Backend`.

    Args:
        device: metal or mlx-cpu. It becomes MLX's default device in this process; on mlx-cpu nothing is compiled.
        dtype: of the weights: auto, or one of COMPUTE_DTYPES.

    Raises:
        DtypeError: the dtype is not one of those.
    """

    tile_version = None

    def __init__(self, device: str = "metal", dtype: str = "auto") -> None:
        self._dtypes = DtypePolicy(device, dtype, COMPUTE_DTYPES)
        mx.set_default_device(mx.Device(mx.cpu if device == "mlx-cpu" else mx.gpu))
        if device == "mlx-cpu":
            mx.disable_compile()  # on a CPU it runs a C++ compiler, which may not be installed
        self.device = self.arithmetic = device
        self._steps = LastStep(_upload)
        self._recorder: int | None = None
        """The thread that traces a step."""

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

    # Weights and caches

    def load_weight(self, tensor: Tensor, role: Role) -> ArrayWeight:
        """Raises NonFiniteError if a value is not finite in the weight's dtype."""
        dtype = self._dtypes.keep(tensor, role)
        rounded_to = "f32" if dtype in _BITS else dtype
        values = _read(tensor).astype(_TYPES[rounded_to])
        if not mx.isfinite(values).all():
            raise NonFiniteError(f"a weight is not a finite {rounded_to} number", tensor=tensor.name)
        match role:
            case Role.VECTOR | Role.CONSTANT:
                return ArrayWeight(values.reshape(-1), tensor.shape, role)  # a port may have parameters of any rank
            case Role.CONV1D:
                values = values.T
            case Role.CONVOLUTION:
                values = values.transpose(0, 2, 1).reshape(len(values), -1)  # (out, size·in)
        if dtype in _BITS:
            return ArrayWeight(_quantise(values, _BITS[dtype]), tensor.shape, role)
        values = mx.contiguous(values)
        mx.eval(values)
        return ArrayWeight(values, tensor.shape, role)

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
        if isinstance(values, QuantisedWeight):
            values = _dequantised(values, values.parts)
        return weight.as_loaded(np.array(values.astype(mx.float32)))

    def kv_cache(self, shape: KVShape, n_blocks: int | Sequence[int]) -> MLXKVCache:
        return MLXKVCache(shape, blocks_of_groups(shape, n_blocks), _TYPES[self.kv_dtype])

    def kv_block_bytes(self, shape: KVShape | KVGroup) -> int:
        value_bytes: int = _TYPES[self.kv_dtype].size
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * value_bytes

    def available_bytes(self) -> int:
        if self.device == "mlx-cpu":
            return available_bytes()
        most: int = mx.device_info()["max_recommended_working_set_size"]
        return max(0, most - int(mx.get_active_memory()))

    # Operations

    def embedding(self, ids: NDArray[np.int32] | mx.array, table: ArrayWeight, first_row: int = 0) -> mx.array:
        at, values = mx.array(ids) + first_row, table.values
        return (
            _dequantised(values, [x[at] for x in values.parts]) if isinstance(values, QuantisedWeight) else values[at]
        )

    def linear(self, x: mx.array, weight: ArrayWeight, bias: ArrayWeight | None) -> mx.array:
        values = weight.values
        if isinstance(values, QuantisedWeight):
            padding = -values.n_in % values.group
            y = mx.quantized_matmul(
                mx.pad(x, ((0, 0), (0, padding))) if padding else x,
                *values.parts,
                transpose=True,
                group_size=values.group,
                bits=values.bits,
            )
            return y if bias is None else y + bias.values
        return x @ values.T if bias is None else mx.addmm(bias.values, x, values.T)

    def layer_norm(self, x: mx.array, weight: ArrayWeight, bias: ArrayWeight | None, eps: float) -> mx.array:
        check_norm(x, weight.values.size, None if bias is None else bias.values.size)
        return mx.fast.layer_norm(x, weight.values, None if bias is None else bias.values, eps)

    def rms_norm(self, x: mx.array, weight: ArrayWeight, eps: float, offset: float = 0.0) -> mx.array:
        check_norm(x, weight.values.size, grouped=True)
        gain = weight.values.astype(mx.float32) + offset
        groups = x.reshape(len(x), -1, gain.size).astype(mx.float32)
        return mx.fast.rms_norm(groups, gain, eps).reshape(x.shape).astype(x.dtype)

    def activation(self, x: mx.array, name: str) -> mx.array:
        return ACTIVATION_FUNCTIONS[name](x.astype(mx.float32)).astype(x.dtype)

    def split(self, x: mx.array, sizes: int | Sequence[int], *, groups: int = 1) -> Sequence[mx.array]:
        n = len(x)
        cuts = np.cumsum(part_sizes(x.shape[1], sizes, groups))[:-1].tolist()
        return [part.reshape(n, -1) for part in mx.split(x.reshape(n, groups, -1), cuts, axis=2)]

    def join(self, parts: Sequence[mx.array]) -> mx.array:
        check_join(parts)
        return mx.concatenate([*parts], axis=1)

    def take(self, x: mx.array, rows: NDArray[np.int32] | mx.array) -> mx.array:
        return x[mx.array(rows)]

    def unfold(self, x: mx.array, rows: NDArray[np.int32]) -> mx.array:
        at = mx.array(rows)
        zero = mx.array(0, x.dtype)
        return mx.where(at[:, :, None] >= 0, x[mx.maximum(at, 0)], zero).reshape(len(rows), -1)

    def angles(self, positions: NDArray[np.int32] | mx.array, frequencies: ArrayWeight, scale: float = 1.0) -> mx.array:
        angle = mx.array(positions).astype(mx.float32)[:, None] * frequencies.values
        return mx.concatenate([mx.cos(angle), mx.sin(angle)], axis=1) * scale

    def rotary(self, x: mx.array, angles: mx.array, n_head: int, *, interleaved: bool = False) -> mx.array:
        check_rotary(x, angles, n_head)
        n, n_rotated = angles.shape
        heads, half = x.reshape(n, n_head, -1), n_rotated // 2  # (N, H, D)
        rotated, rest = heads[:, :, :n_rotated].astype(mx.float32), heads[:, :, n_rotated:]
        cos, sin = angles[:, None, :half], angles[:, None, half:]
        if interleaved:
            a, b = rotated[..., 0::2], rotated[..., 1::2]
        else:
            a, b = rotated[..., :half], rotated[..., half:]
        a, b = a * cos - b * sin, b * cos + a * sin
        rotated = mx.stack([a, b], axis=3).reshape(rotated.shape) if interleaved else mx.concatenate([a, b], axis=2)
        return mx.concatenate([rotated.astype(x.dtype), rest], axis=2).reshape(x.shape)

    def attention(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        batch: Batch,
        *,
        layer: int,
        n_head: int,
        scale: float,
        window: int | None = None,
        slopes: ArrayWeight | None = None,
        softcap: float | None = None,
    ) -> mx.array:
        cache = batch.cache
        if not isinstance(batch, Step):
            batch.require_cache()
            cache.reserve(batch)
        step = self._steps.of(batch).of_group(cache.group_of[layer])
        cached, kv_type = cache.keys[layer].shape[-2:], cache.keys[layer].dtype
        n_slopes = None if slopes is None else len(slopes.values)
        check_attention(q, k, v, cached, n_head=n_head, window=window, n_slopes=n_slopes, softcap=softcap)
        check_window(window, cache.windows[layer], layer)
        q, k, v = (x.reshape(len(x), -1, cached[1]).astype(kv_type) for x in (q, k, v))  # (N, H or K, D)
        keys, values = cache.keys[layer], cache.values[layer]
        keys[step.places], values[step.places] = k, v
        scoring = Scoring(scale, window, None if slopes is None else slopes.values, softcap)

        def decode(rows: Any) -> mx.array:
            return decode_attention(q[rows], keys, values, step.tables, step.lengths, scoring)

        def prefill(chunk: PromptChunk) -> mx.array:
            return prefill_attention(q[chunk.rows], keys, values, chunk.blocks, chunk.length, scoring)

        return attend(step, lambda: mx.zeros_like(q), decode, prefill).reshape(len(q), -1)

    def sample(self, logits: mx.array, rows: Sequence[SamplingRow]) -> list[int]:
        x = _adjusted(logits.astype(mx.float32), rows)
        largest, ids = mx.max(x, axis=1), mx.argmax(x, axis=1)
        random = [i for i, row in enumerate(rows) if row.temperature]
        for part in in_parts(random, x.shape[1]):
            at = mx.array(part)
            settings = mx.array([_settings(rows[i]) for i in part]).T[:, :, None]
            ids[at] = sample_tokens(x[at], *settings)
        usable = mx.isfinite(largest) & ~mx.isnan(x).any(axis=1)
        sampled: list[int] = mx.where(usable, ids.astype(mx.int32), -1).tolist()
        return sampled

    def from_numpy(self, values: NDArray[np.floating]) -> mx.array:
        return mx.array(values, _TYPES[self.compute_dtype])

    def to_numpy(self, x: mx.array) -> NDArray[np.float32]:
        if self._recorder == get_ident():
            raise NotRecordableError("the forward reads an array on the host")
        return np.array(x.astype(mx.float32))

    # Steps

    def capture(self, forward: Forward) -> Forward:
        """The forward, evaluated once per step, with decode steps compiled.

        Decode steps are padded to powers of two in rows and blocks, so that few shapes are traced.
        """

        def run(batch: Batch) -> mx.array:
            cache = batch.cache
            cache.reserve(batch)
            with_padding = padded(batch, cache.spares)
            host = HostStep.of(batch if with_padding is None else with_padding, cache.spares)
            numbers = _upload(host.numbers)
            first: list[mx.array] = []

            def record(_: object) -> Callable[[list[mx.array]], mx.array]:
                compiled = _compile(forward, host, cache)
                keys, values = cache.keys[:], cache.values[:]
                self._recorder = get_ident()
                try:
                    first.append(compiled(numbers))  # traces the forward
                except BaseException as error:
                    cache.keys[:], cache.values[:] = keys, values  # a trace leaves its placeholders there
                    if isinstance(error, ValueError) and _EVAL_IN_TRACE in str(error):
                        raise NotRecordableError("the forward reads an array on the host") from error
                    raise
                finally:
                    self._recorder = None
                return compiled

            if with_padding is None:
                logits = forward(host.on_device(numbers))
            else:
                compiled = cache.compiled.get(forward, host, record)
                logits = first.pop() if first else compiled(numbers)
            mx.async_eval(logits, cache.keys, cache.values)
            return logits if with_padding is None else logits[: len(batch.logit_rows)]

        return Captured(forward, run, forward, self.device)


def _adjusted(x: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    """The logits after the rows' adjustments, minus infinity where a token is not allowed."""
    adjustments = [(i, row.adjustments) for i, row in enumerate(rows) if row.adjustments is not None]
    if adjustments:
        at = mx.array(np.concatenate([np.full(len(one.ids), i) for i, one in adjustments]))
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            ids, factors, offsets = (
                mx.array(np.concatenate([one[i] for _, one in adjustments]).astype(kind))
                for i, kind in enumerate((np.int32, np.float32, np.float32))
            )
        values = x[at, ids]
        values = mx.where(values > 0, values / factors, values * factors) + offsets
        x = x + 0  # a copy: the logits stay unchanged
        x[at, ids] = values
    allowed = allowed_tokens(rows, x.shape[1])
    return x if allowed is None else mx.where(mx.array(allowed), x, -mx.inf)


def sample_tokens(
    logits: mx.array, temperature: mx.array, top_k: mx.array, top_p: mx.array, min_p: mx.array, uniform: mx.array
) -> mx.array:
    """(S, V) float32 logits, (S, 1) settings of `protocol.SamplingRow` -> (S,) tokens."""
    n = logits.shape[1]
    order = mx.argsort(-logits, axis=1)
    last = mx.where(top_k > 0, mx.minimum(top_k, n), n).astype(mx.int32) - 1
    least = mx.take_along_axis(mx.take_along_axis(logits, order, axis=1), last, axis=1)
    logits = mx.where(logits < least, -mx.inf, logits)
    weights = mx.exp((logits - mx.max(logits, axis=1, keepdims=True)) / temperature)
    most_likely = mx.take_along_axis(weights, order, axis=1)
    reached = mx.cumsum(most_likely, axis=1)
    needed = (reached - most_likely < top_p * reached[:, -1:]) | (top_p >= 1)
    weights = mx.put_along_axis(mx.zeros_like(weights), order, mx.where(needed, most_likely, 0), axis=1)
    weights = mx.where(weights < min_p * mx.max(weights, axis=1, keepdims=True), 0, weights)
    # Parallel sums may not grow at every token: only one that has a weight counts, and at least one has.
    reached = mx.where(weights > 0, mx.cumsum(weights, axis=1), 0)
    return mx.argmax(reached > uniform * mx.max(reached, axis=1, keepdims=True), axis=1)


def _settings(row: SamplingRow) -> tuple[float, float, float, float, float]:
    """A row's settings, kept within what float32 does not round to 0 or 1."""
    least, most = 2**-100, 1 - 2**-22
    return max(row.temperature, least), min(row.top_k, 2**30), row.top_p, row.min_p, min(row.uniform, most)


def _upload(numbers: Sequence[NDArray[np.integer]]) -> list[mx.array]:
    return [mx.array(array) for array in numbers]


def _compile(forward: Forward, host: HostStep, cache: MLXKVCache) -> Callable[[list[mx.array]], mx.array]:
    """A compiled decode step of one shape over one cache, from its numbers. Weights are constants of it."""
    state = [cache.keys, cache.values]

    def step(numbers: list[mx.array]) -> mx.array:
        return forward(host.on_device(numbers))

    compiled: Callable[[list[mx.array]], mx.array] = mx.compile(step, inputs=state, outputs=state)
    return compiled


def decode_attention(
    q: mx.array, keys: mx.array, values: mx.array, tables: mx.array, lengths: mx.array, scoring: Scoring
) -> mx.array:
    """Attention of one row per sequence, its last, over its blocks: (S, H, D) queries -> (S, H, D).

    Args:
        q: the queries.
        keys, values: (n_places, K, D), BLOCK_SIZE places per block.
        tables: (S, W) each sequence's blocks.
        lengths: (S,) the positions of each sequence, its row's own being the last.
        scoring: how scores are computed.
    """
    n, width = tables.shape
    distance = mx.arange(1, width * BLOCK_SIZE + 1) - lengths[:, None]  # (S, T)
    visible = _visible(distance, scoring.window)
    # A place may hold NaN from another sequence, which no mask removes from a sum.
    k, v = (
        mx.where(visible[:, :, None, None], _blocks(x, tables).reshape(n, -1, *x.shape[1:]), mx.array(0, x.dtype))
        for x in (keys, values)
    )  # (S, T, K, D)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    if scoring.changes_scores:
        return _scored(q[:, :, None], k, v, distance[:, None, None], visible[:, None, None], scoring)[:, :, 0]
    return _attention(q[:, :, None], k, v, scoring.scale, visible[:, None, None])[:, :, 0]


def prefill_attention(
    q: mx.array, keys: mx.array, values: mx.array, blocks: mx.array, length: int, scoring: Scoring
) -> mx.array:
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
    k, v = (_blocks(x, blocks[first:]).reshape(-1, *x.shape[1:])[: length - start] for x in (keys, values))  # (T, K, D)
    q, k, v = (x.swapaxes(0, 1)[None] for x in (q, k, v))  # (1, H or K, ·, D)
    if scoring.is_plain:
        return _attention(q, k, v, scoring.scale, "causal")[0].swapaxes(0, 1)
    distance = mx.arange(start, length) - mx.arange(length - n, length)[:, None]  # (n, T)
    visible = _visible(distance, scoring.window)
    if scoring.changes_scores:
        return _scored(q, k, v, distance, visible, scoring)[0].swapaxes(0, 1)
    return _attention(q, k, v, scoring.scale, visible)[0].swapaxes(0, 1)


def _visible(distance: mx.array, window: int | None) -> mx.array:
    """Whether a row sees a position at this distance from its own."""
    return distance <= 0 if window is None else (distance <= 0) & (distance > -window)


def _scored(q: mx.array, k: mx.array, v: mx.array, distance: mx.array, visible: mx.array, scoring: Scoring) -> mx.array:
    """Attention with slopes or a softcap, in float32: (B, H, n, D) queries, (B, K, T, D) keys and values.

    Args:
        distance, visible: (n, T), or (B, 1, n, T).
    """
    group = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(x.astype(mx.float32), group, axis=1) for x in (k, v))
    scores = scoring.scale * (q.astype(mx.float32) @ k.swapaxes(2, 3))
    if scoring.softcap is not None:
        scores = scoring.softcap * mx.tanh(scores / scoring.softcap)
    if scoring.slopes is not None:
        scores = scores + scoring.slopes[:, None, None] * distance
    p = mx.softmax(mx.where(visible, scores, -mx.inf), axis=-1)
    return (p @ v).astype(q.dtype)


def _attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str) -> mx.array:
    """(B, H, n, D) queries, (B, K, T, D) keys and values -> (B, H, n, D), the scores in float32."""
    kept = q.dtype
    if mx.default_device() == mx.Device(mx.cpu):  # MLX has no kernel for it there, and rounds the scores
        q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask).astype(kept)


def _blocks(x: mx.array, blocks: mx.array) -> mx.array:
    """(n_places, K, D), block numbers -> the places of those blocks, (..., BLOCK_SIZE, K, D)."""
    return x.reshape(-1, BLOCK_SIZE, *x.shape[1:])[blocks]


def _read(tensor: Tensor) -> mx.array:
    """A checkpoint's tensor in its own dtype, but for float64, which is rounded: MLX has none on a GPU."""
    if tensor.dtype == "F64":
        return mx.asarray(tensor.float32())
    file_type = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype]
    values = np.empty(tensor.shape, file_type)
    tensor.read_into(values.reshape(-1).view(np.uint8), 0)
    array = mx.asarray(values)  # on a GPU that shares the memory, not copied
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array


def _quantise(matrix: mx.array, bits: int) -> QuantisedWeight:
    """(n_out, n_in), quantised in groups of 64 inputs, or of 32 where n_in is not a multiple of 64."""
    n_in = matrix.shape[1]
    group = 64 if n_in % 64 == 0 else 32
    parts = mx.quantize(mx.pad(matrix, ((0, 0), (0, -n_in % group))), group_size=group, bits=bits)
    parts = tuple(part.astype(mx.float16) if part.dtype == mx.float32 else part for part in parts)
    mx.eval(parts)
    return QuantisedWeight(parts, n_in, group, bits)


def _dequantised(weight: QuantisedWeight, parts: Sequence[mx.array]) -> mx.array:
    """All rows of a weight, or some, given as their parts."""
    return mx.dequantize(*parts, group_size=weight.group, bits=weight.bits)[:, : weight.n_in]


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
