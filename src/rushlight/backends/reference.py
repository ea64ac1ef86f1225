"""The reference backend: NumPy, written to be read, and what every other backend is compared with.

Each row is computed by the same calls on the same shapes whatever rows stand beside it, so that a token's logits are
the same bits alone, in a batch, in a chunk of a prompt or one at a time from the cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.protocol import Role
from rushlight.errors import DtypeError
from rushlight.host.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike, NDArray

    from rushlight.backends.batch import Batch, KVShape
    from rushlight.backends.protocol import Forward, SamplingRow, Tensor

Floats = Any  # NDArray of float32, or of float64 in that mode

DTYPES: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f64": np.float64}


class Vector:
    """A bias or a gain, (C,): only operations compute with it. `numpy.asarray(vector)` is a copy of its values.

    A port that passes here must pass on `cpu`, whose weights are opaque; so they are here.
    """

    __array_ufunc__ = None  # no arithmetic, with a NumPy array neither

    def __init__(self, values: Floats) -> None:
        self.values = values.reshape(-1)  # a port may have parameters of any rank

    @property
    def shape(self) -> tuple[int]:
        return self.values.shape  # type: ignore[no-any-return]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype)


class Matrix:
    """A matrix laid out for `x @ values`, or for rows by id: only operations compute with it."""

    __array_ufunc__ = None

    def __init__(self, values: Floats) -> None:
        self.values = values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        raise TypeError(
            "a matrix is packed for this device and cannot be read as an array: its values are "
            "rushlight.open_checkpoint(source)[name].float32()"
        )


class ReferenceKVCache:
    """Keys and values, each (n_layer, n_blocks, H, BLOCK_SIZE, D): zeros that take memory as they are written."""

    def __init__(self, shape: KVShape, n_blocks: int, dtype: type[np.floating[Any]]) -> None:
        dims = (shape.n_layer, n_blocks, shape.n_kv_head, BLOCK_SIZE, shape.head_dim)
        self.keys: Floats = np.zeros(dims, dtype)
        self.values: Floats = np.zeros(dims, dtype)


class ReferenceBackend:
    """Every operation in NumPy, in float32, or in float64 for tests. Implements `protocol.Backend`."""

    device = "reference"
    arithmetic = "numpy"  # BLAS chooses its kernels by the processor

    def __init__(self, dtype: str = "f32") -> None:
        if dtype not in DTYPES:
            raise DtypeError(
                f"the reference backend does not compute in {dtype}",
                expected=" or ".join(DTYPES),
                remedy="leave --dtype out: f16 and bf16 checkpoints are computed in f32, exactly",
            )
        self.dtype = dtype
        self._float = DTYPES[dtype]

    def load_weight(self, tensor: Tensor, role: Role) -> Vector | Matrix:
        values = tensor.float32().astype(self._float, copy=False)
        if role is Role.VECTOR:
            return Vector(values)
        if role is Role.CONVOLUTION:
            return Matrix(values.transpose(2, 1, 0).reshape(-1, len(values)))  # (size·in, out)
        return Matrix(values.T if role is Role.LINEAR else values)

    def finish_loading(self) -> None:
        """`place` has done it all."""

    def tie(self, table: Matrix) -> Matrix:
        return Matrix(table.values.T)

    def kv_cache(self, shape: KVShape, n_blocks: int) -> ReferenceKVCache:
        return ReferenceKVCache(shape, n_blocks, self._float)

    def kv_block_bytes(self, shape: KVShape) -> int:
        return 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * np.dtype(self._float).itemsize

    def available_bytes(self) -> int:
        return available_bytes()

    def capture(self, forward: Forward) -> Forward:
        return forward

    def embedding(self, ids: NDArray[np.int32], table: Matrix) -> Floats:
        return table.values[ids]

    def linear(self, x: Floats, weight: Matrix, bias: Vector | None) -> Floats:
        # One vector-matrix product a row: a matrix-matrix product sums in an order that depends on the number of rows.
        y = np.matmul(x[:, None, :], weight.values)[:, 0, :]
        return y if bias is None else y + bias.values

    def layer_norm(self, x: Floats, weight: Vector, bias: Vector, eps: float) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self._float(eps)) * weight.values + bias.values

    def activation(self, x: Floats, name: str) -> Floats:
        return ACTIVATION_FUNCTIONS[name](x)

    def split(self, x: Floats, n: int) -> list[Floats]:
        return np.split(x, n, axis=-1)

    def take(self, x: Floats, rows: NDArray[np.int32]) -> Floats:
        return x[rows]

    def unfold(self, x: Floats, rows: NDArray[np.int32]) -> Floats:
        return np.where(rows[:, :, None] >= 0, x[rows], self._float(0)).reshape(len(rows), -1)

    def attention(
        self, q: Floats, k: Floats, v: Floats, batch: Batch, *, layer: int, n_head: int, scale: float
    ) -> Floats:
        n, c = q.shape
        q, k, v = (x.reshape(n, n_head, c // n_head) for x in (q * self._float(scale), k, v))
        out = np.empty_like(q)
        keys, values = batch.cache.keys[layer], batch.cache.values[layer]
        for span in batch.spans():
            out[span.rows] = _attend(q[span.rows], k[span.rows], v[span.rows], span.position, span.blocks, keys, values)
        return out.reshape(n, c)

    def sample(self, logits: Floats, draws: Sequence[SamplingRow]) -> list[int]:
        return [_sample(row, draw) for row, draw in zip(logits, draws, strict=True)]

    def from_numpy(self, values: Floats) -> Floats:
        return values.astype(self._float, copy=False)

    def to_numpy(self, x: Floats) -> Floats:
        return np.asarray(x)


def _attend(
    q: Floats, k: Floats, v: Floats, position: int, blocks: NDArray[np.int32], keys: Floats, values: Floats
) -> Floats:
    """Causal attention of one sequence's n new rows, block of keys by block of keys; never a T×T matrix.

    The recurrence of FlashAttention (Dao et al., 2022, arXiv:2205.14135, algorithm 1): with a running maximum m, a
    running sum l of exp(score - m), and a running weighted sum o of values, a new block of scores rescales both by
    exp(m_old - m_new).

    Args:
        q, k, v: (n, H, D), q already scaled; they stand at `position` and after.
        blocks: the sequence's blocks in keys and values, each (n_blocks, H, BLOCK_SIZE, D), written here.
    """
    n, n_head, head_dim = q.shape
    positions = np.arange(position, position + n)
    block_of, slot = blocks[positions // BLOCK_SIZE], positions % BLOCK_SIZE
    keys[block_of, :, slot], values[block_of, :, slot] = k, v

    m = np.full((n, n_head, 1), -np.inf, q.dtype)
    total = np.zeros((n, n_head, 1), q.dtype)
    o = np.zeros((n, n_head, head_dim), q.dtype)
    for start in range(0, position + n, BLOCK_SIZE):
        block = blocks[start // BLOCK_SIZE]
        seen = slice(max(0, start - position), n)  # rows that stand before the block see nothing of it
        visible = np.arange(start, start + BLOCK_SIZE) <= positions[seen, None]  # (n, BLOCK_SIZE)

        scores = np.matmul(q[seen, :, None, :], keys[block].swapaxes(-1, -2))[:, :, 0, :]  # (n, H, BLOCK_SIZE)
        scores = np.where(visible[:, None, :], scores, -np.inf)
        m_new = np.maximum(m[seen], scores.max(axis=-1, keepdims=True))
        p = np.exp(scores - m_new)
        rescale = np.exp(m[seen] - m_new)
        total[seen] = total[seen] * rescale + p.sum(axis=-1, keepdims=True)
        # What another sequence left beyond this one's end may be NaN, which a probability of 0 does not take out.
        held = np.where(np.arange(start, start + BLOCK_SIZE)[:, None] < position + n, values[block], 0)
        o[seen] = o[seen] * rescale + np.matmul(p[:, :, None, :], held)[:, :, 0, :]
        m[seen] = m_new
    return o / total


def _sample(logits: Floats, draw: SamplingRow) -> int:
    """(V,) logits -> the token of the draw."""
    with np.errstate(all="ignore"):  # what overflows is infinite, and said to be
        logits = _changed(logits, draw)
    best = int(np.argmax(logits))  # a NaN counts as the greatest
    if not np.isfinite(logits[best]):
        return -1
    if draw.temperature == 0:
        return best
    weights = probabilities(logits, draw.temperature, draw.top_k, draw.top_p, draw.min_p)
    cumulative = np.cumsum(weights)
    token = np.searchsorted(cumulative, draw.uniform * cumulative[-1], side="right")
    return int(min(token, np.flatnonzero(weights)[-1]))  # rounding may reach the very end


def _changed(logits: Floats, draw: SamplingRow) -> Floats:
    """The logits after the draw's changes, and minus infinity where a token is not allowed."""
    if draw.adjustments is not None:
        ids, factors, offsets = draw.adjustments
        values, factors = logits[ids], factors.astype(logits.dtype)
        logits = logits.copy()
        logits[ids] = np.where(values > 0, values / factors, values * factors) + offsets
    return logits if draw.allowed is None else np.where(draw.allowed, logits, logits.dtype.type(-np.inf))


def probabilities(
    logits: Floats, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """(V,) logits -> (V,) unnormalised probabilities after temperature, top-k, top-p and min-p; 0 for what is left out.

    As transformers' logits processors in the same order: equals at the edge of top-k all stay, and top-p keeps the
    fewest tokens, likeliest first, whose probabilities reach it.
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
    # exp of -|x| cannot overflow
    e = np.exp(-np.abs(x))
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
