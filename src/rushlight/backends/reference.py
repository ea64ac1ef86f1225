"""The reference backend: every operation in NumPy, written to be read, and what other backends are compared with.

Each row is computed by the same calls on arrays of the same shape, whatever else is in the batch. So a token's logits
are bit-identical whether its sequence runs solo or batched, in one prompt chunk or several, or token by token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.arguments import (
    check_attention,
    check_join,
    check_norm,
    check_rotary,
    check_window,
    part_sizes,
    require,
)
from rushlight.backends.batch import BLOCK_SIZE, blocks_of_groups
from rushlight.backends.dtypes import check_dtype
from rushlight.backends.protocol import Role
from rushlight.backends.weights import OpaqueWeight
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch, KVGroup, KVShape
    from rushlight.backends.protocol import Forward, SamplingRow, Tensor

Floats = Any  # NDArray of float32, or of float64 at dtype f64

DTYPES: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f64": np.float64}


class ReferenceWeight(OpaqueWeight):
    """A parameter as NumPy arrays that only operations compute with.

    Attributes:
        values: the numbers, in the shape that the tensor had.
        array: the same, laid out for the operations of the weight's role.
    """

    __slots__ = ("array", "values")

    def __init__(self, values: Floats, array: Floats) -> None:
        self.values = values
        self.array = array

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)


class ReferenceKVCache:
    """Keys and values, each one (n_blocks, K, BLOCK_SIZE, D) array per layer: zeros, which take memory once written.

    Attributes:
        keys, values: the arrays.
        group_of: the group of each layer.
        windows: the window of each layer; None keeps all positions.
    """

    def __init__(self, shape: KVShape, n_blocks: Sequence[int], dtype: type[np.floating[Any]]) -> None:
        self.group_of = shape.group_of
        self.windows = shape.windows or (None,) * shape.n_layer
        dims = [(n_blocks[g], shape.n_kv_head, BLOCK_SIZE, shape.head_dim) for g in self.group_of]
        self.keys: list[Floats] = [np.zeros(each, dtype) for each in dims]
        self.values: list[Floats] = [np.zeros(each, dtype) for each in dims]


class ReferenceBackend:
    """Every operation in NumPy, in float32, or in float64 for tests. Implements `protocol.Backend`."""

    device = "reference"
    arithmetic = "numpy"  # BLAS chooses its kernels by the processor
    tile_version = None

    def __init__(self, dtype: str = "f32") -> None:
        remedy = "leave --dtype out: f16 and bf16 checkpoints are computed in f32, without loss"
        check_dtype(self.device, dtype, DTYPES, remedy)
        self.dtype_label = self.compute_dtype = self.kv_dtype = dtype
        self.weight_dtypes = frozenset({dtype})
        self._float = DTYPES[dtype]

    # Weights and caches

    def load_weight(self, tensor: Tensor, role: Role) -> ReferenceWeight:
        values = tensor.float32().astype(self._float, copy=False)
        array: Floats = values  # (V, C) for TABLE, (in, out) for CONV1D
        if role in (Role.VECTOR, Role.CONSTANT):
            array = values.reshape(-1)  # a port may have parameters of any rank
        elif role is Role.LINEAR:
            array = values.T  # (in, out)
        elif role is Role.CONVOLUTION:
            array = values.transpose(2, 1, 0).reshape(-1, len(values))  # (size·in, out)
        return ReferenceWeight(values, array)

    def finish_loading(self, *, spare_core: bool = False) -> None:
        """Does nothing: `load_weight` reads the tensor."""

    def hurry(self) -> None:
        """Does nothing."""

    def tie(self, table: ReferenceWeight) -> ReferenceWeight:
        return ReferenceWeight(table.values, table.array.T)

    def check_weights(self) -> None:
        """Does nothing: no weight is mapped from a file."""

    def weight_values(self, weight: ReferenceWeight) -> NDArray[np.float32]:
        return np.array(weight.values, np.float32)

    def kv_cache(self, shape: KVShape, n_blocks: int | Sequence[int]) -> ReferenceKVCache:
        return ReferenceKVCache(shape, blocks_of_groups(shape, n_blocks), self._float)

    def kv_block_bytes(self, shape: KVShape | KVGroup) -> int:
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * np.dtype(self._float).itemsize

    def available_bytes(self) -> int:
        return available_bytes()

    def capture(self, forward: Forward) -> Forward:
        return forward

    # Operations

    def embedding(self, ids: NDArray[np.int32], table: ReferenceWeight, first_row: int = 0) -> Floats:
        n_rows = len(table.array)
        require(0 <= first_row <= n_rows, f"first_row is {first_row}, the table has {n_rows} rows")
        beyond = _outside(ids, 0, n_rows - first_row)
        require(not beyond, f"ids {beyond} are beyond the table's {n_rows - first_row} rows from row {first_row}")
        return table.array[first_row + ids]

    def linear(self, x: Floats, weight: ReferenceWeight, bias: ReferenceWeight | None) -> Floats:
        n_in, n_out = weight.array.shape
        require(x.shape[1] == n_in, f"x has {x.shape[1]} columns, the weight {n_in} inputs")
        require(bias is None or bias.array.size == n_out, f"the bias does not have {n_out} values, one for each output")
        # One vector-matrix product a row: a matrix-matrix product sums in an order that depends on the number of rows.
        y = np.matmul(x[:, None, :], weight.array)[:, 0, :]
        return y if bias is None else y + bias.array

    def layer_norm(self, x: Floats, weight: ReferenceWeight, bias: ReferenceWeight | None, eps: float) -> Floats:
        check_norm(x, weight.array.size, None if bias is None else bias.array.size)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + self._float(eps)) * weight.array
        return y if bias is None else y + bias.array

    def rms_norm(self, x: Floats, weight: ReferenceWeight, eps: float, offset: float = 0.0) -> Floats:
        check_norm(x, weight.array.size, grouped=True)
        groups = x.reshape(len(x), -1, weight.array.size)
        mean_square = np.square(groups).mean(axis=-1, keepdims=True)
        y = groups / np.sqrt(mean_square + self._float(eps)) * (self._float(offset) + weight.array)
        return y.reshape(x.shape)

    def activation(self, x: Floats, name: str) -> Floats:
        require(name in ACTIVATION_FUNCTIONS, f"no such activation: {name}")
        return ACTIVATION_FUNCTIONS[name](x)

    def split(self, x: Floats, sizes: int | Sequence[int], *, groups: int = 1) -> list[Floats]:
        n = len(x)
        cuts = np.cumsum(part_sizes(x.shape[1], sizes, groups))[:-1]
        return [part.reshape(n, -1) for part in np.split(x.reshape(n, groups, -1), cuts, axis=2)]

    def join(self, parts: Sequence[Floats]) -> Floats:
        check_join(parts)
        return np.concatenate(parts, axis=1)

    def take(self, x: Floats, rows: NDArray[np.int32]) -> Floats:
        _check_rows(x, rows, 0)
        return x[rows]

    def unfold(self, x: Floats, rows: NDArray[np.int32]) -> Floats:
        _check_rows(x, rows, -1)
        return np.where(rows[:, :, None] >= 0, x[rows], self._float(0)).reshape(len(rows), -1)

    def angles(self, positions: NDArray[np.int32], frequencies: ReferenceWeight, scale: float = 1.0) -> Floats:
        negative = _outside(positions, 0, 2**31)
        require(not negative, f"positions {negative} are negative")
        # PyTorch's rounding, at float64 too: the product of two float32, then the cosine of that float32 number.
        product = positions.astype(np.float32)[:, None] * frequencies.array.astype(np.float32)
        angle = product.astype(np.float64)
        return (np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * scale).astype(self._float)

    def rotary(self, x: Floats, angles: Floats, n_head: int, *, interleaved: bool = False) -> Floats:
        check_rotary(x, angles, n_head)
        half = angles.shape[1] // 2
        cos, sin = angles[:, None, :half], angles[:, None, half:]
        y = x.reshape(len(x), n_head, -1).copy()  # (N, H, D)
        if interleaved:
            first, second = y[:, :, 0 : 2 * half : 2], y[:, :, 1 : 2 * half : 2]
        else:
            first, second = y[:, :, :half], y[:, :, half : 2 * half]
        first[:], second[:] = first * cos - second * sin, second * cos + first * sin
        return y.reshape(x.shape)

    def attention(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        batch: Batch,
        *,
        layer: int,
        n_head: int,
        scale: float,
        window: int | None = None,
        slopes: ReferenceWeight | None = None,
        softcap: float | None = None,
    ) -> Floats:
        batch.require_cache()
        n_layer = len(batch.cache.keys)
        require(0 <= layer < n_layer, f"layer {layer} is not in this cache, which has {n_layer} layers")
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        _, n_kv_head, _, head_dim = keys.shape
        bias = None if slopes is None else slopes.array
        n_slopes = None if bias is None else bias.size
        check_attention(
            q, k, v, (n_kv_head, head_dim), n_head=n_head, window=window, n_slopes=n_slopes, softcap=softcap
        )
        check_window(window, batch.cache.windows[layer], layer)
        n = len(q)
        q, k, v = (x.reshape(n, -1, head_dim) for x in (q * self._float(scale), k, v))
        out = np.empty_like(q)
        for span in batch.spans(batch.cache.group_of[layer]):
            out[span.rows] = _attend(
                q[span.rows],
                k[span.rows],
                v[span.rows],
                span.position,
                span.blocks,
                keys,
                values,
                window,
                bias,
                softcap,
            )
        return out.reshape(n, -1)

    def sample(self, logits: Floats, rows: Sequence[SamplingRow]) -> list[int]:
        return [_sample(of_row, row) for of_row, row in zip(logits, rows, strict=True)]

    def from_numpy(self, values: Floats) -> Floats:
        return values.astype(self._float, copy=False)

    def to_numpy(self, x: Floats) -> Floats:
        return np.asarray(x)


def _outside(numbers: NDArray[np.int32], least: int, end: int) -> list[int]:
    """The first few numbers below `least` or from `end` on. NumPy would take negative indices from the end."""
    outside: list[int] = numbers[(numbers < least) | (numbers >= end)][:4].tolist()
    return outside


def _check_rows(x: Floats, rows: NDArray[np.int32], least: int) -> None:
    missing = _outside(rows, least, len(x))
    require(not missing, f"rows {missing} are not in an array of {len(x)} rows")


def _attend(
    q: Floats,
    k: Floats,
    v: Floats,
    position: int,
    blocks: NDArray[np.int32],
    keys: Floats,
    values: Floats,
    window: int | None,
    slopes: Floats | None,
    softcap: float | None,
) -> Floats:
    """Causal attention of one sequence's n new rows, block of keys by block of keys; never a T×T matrix.

    The recurrence of FlashAttention (Dao et al., 2022, arXiv:2205.14135, algorithm 1): with a running maximum m, a
    running sum l of exp(score - m), and a running weighted sum o of values, a new block of scores rescales both by
    exp(m_old - m_new).

    Args:
        q: (n, H, D), scaled; at `position` and the positions after it.
        k, v: (n, K, D), of the same positions.
        blocks: the sequence's blocks in keys and values, each (n_blocks, K, BLOCK_SIZE, D), which this writes.
        window, slopes, softcap: those of `protocol.Backend.attention`.
    """
    n, n_head, head_dim = q.shape
    n_kv_head = k.shape[1]
    positions = np.arange(position, position + n)
    block_of, place = blocks[positions // BLOCK_SIZE], positions % BLOCK_SIZE
    keys[block_of, :, place], values[block_of, :, place] = k, v

    q = q.reshape(n, n_kv_head, n_head // n_kv_head, head_dim)  # the query heads of each key head
    m = np.full((*q.shape[:3], 1), -np.inf, q.dtype)
    total = np.zeros((*q.shape[:3], 1), q.dtype)
    o = np.zeros(q.shape, q.dtype)
    window = position + n if window is None else window
    first_start = max(0, position - window + 1) // BLOCK_SIZE * BLOCK_SIZE
    for start in range(first_start, position + n, BLOCK_SIZE):
        block, stop = blocks[start // BLOCK_SIZE], start + BLOCK_SIZE
        # The rows that see something of this block: neither before it, nor so far behind that it is out of the window.
        seeing = slice(max(0, start - position), min(n, stop + window - 1 - position))
        distance = np.arange(start, stop) - positions[seeing, None]  # (rows, BLOCK_SIZE), 0 for the row's own position
        visible = (distance <= 0) & (distance > -window)

        scores = np.matmul(q[seeing], keys[block].swapaxes(-1, -2))  # (rows, K, H/K, BLOCK_SIZE)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if slopes is not None:
            bias = slopes[:, None] * distance.astype(q.dtype)[:, None, :]  # (rows, H, BLOCK_SIZE)
            scores = scores + bias.reshape(scores.shape)
        scores = np.where(visible[:, None, None, :], scores, -np.inf)
        m_new = np.maximum(m[seeing], scores.max(axis=-1, keepdims=True))
        p = np.exp(scores - m_new)
        rescale = np.exp(m[seeing] - m_new)
        total[seeing] = total[seeing] * rescale + p.sum(axis=-1, keepdims=True)
        # Places that no row sees may hold another sequence's NaN, which a probability of 0 does not cancel.
        readable = np.where(np.any(visible, axis=0, keepdims=True).T, values[block], 0)
        o[seeing] = o[seeing] * rescale + np.matmul(p, readable)
        m[seeing] = m_new
    return (o / total).reshape(n, n_head, head_dim)


def _sample(logits: Floats, row: SamplingRow) -> int:
    """(V,) logits -> a token id, or -1 where the largest logit is not finite."""
    with np.errstate(all="ignore"):  # an overflow is infinite, which -1 reports
        logits = _adjusted(logits, row)
    best = int(np.argmax(logits))  # a NaN counts as the largest
    if not np.isfinite(logits[best]):
        return -1
    if row.temperature == 0:
        return best
    weights = probabilities(logits, row.temperature, row.top_k, row.top_p, row.min_p)
    cumulative = np.cumsum(weights)
    token = np.searchsorted(cumulative, row.uniform * cumulative[-1], side="right")
    return int(min(token, np.flatnonzero(weights)[-1]))  # rounding may reach the very end


def _adjusted(logits: Floats, row: SamplingRow) -> Floats:
    """The logits after the row's adjustments, minus infinity where a token is not allowed."""
    if row.adjustments is not None:
        ids, factors, offsets = row.adjustments
        values, factors = logits[ids], factors.astype(logits.dtype)
        logits = logits.copy()
        logits[ids] = np.where(values > 0, values / factors, values * factors) + offsets
    return logits if row.allowed is None else np.where(row.allowed, logits, logits.dtype.type(-np.inf))


def probabilities(
    logits: Floats, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """(V,) logits -> (V,) unnormalised probabilities after temperature, top-k, top-p and min-p; 0 for excluded tokens.

    The same as transformers' logits processors in that order: all tokens equal to the last of the top k stay, and top-p
    keeps the fewest tokens, most likely first, whose probabilities reach it.
    """
    scaled = logits.astype(np.float64) / temperature
    if 0 < top_k < scaled.size:
        least = np.partition(scaled, -top_k)[-top_k]
        scaled[scaled < least] = -np.inf
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        n_kept = np.searchsorted(cumulative, top_p * cumulative[-1]) + 1
        weights[order[n_kept:]] = 0
    if min_p > 0:
        weights[weights < min_p * weights.max()] = 0
    return weights


def _gelu_tanh(x: Floats) -> Floats:
    # The constant is a Python float: a NumPy scalar of float64 would raise a float32 array to float64.
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu_erf(x: Floats) -> Floats:
    return 0.5 * x * (1.0 + _erf(x * math.sqrt(0.5)).astype(x.dtype, copy=False))


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0)


def _sigmoid(x: Floats) -> Floats:
    e = np.exp(-np.abs(x))  # cannot overflow
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)


def _quick_gelu(x: Floats) -> Floats:
    return x * _sigmoid(1.702 * x)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "relu": _relu,
    "silu": _silu,
    "quick_gelu": _quick_gelu,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
