"""Helpers for the native tests: tensors in memory, packed weights, chunked attention, textbook formulas."""

import numpy as np
import pytest

from rushlight.backends import _native

FORMATS = ("f32", "f16", "bf16", "int8", "int6", "int4")
DTYPES = ("f32", "f16", "bf16", "int8", "int4")
"""Those that a user may request: int4 keeps tables in int6."""
KV_FORMATS = ("f32", "f16")
ISAS = _native.instruction_sets()
MARKED_ISAS = [ISAS[0], *(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[1:])]
"""For parametrize: the tests with other sets than the processor's fastest run in CI."""


class ArrayTensor:
    """A tensor in memory."""

    name, dtype = "test", "F32"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def float32(self):
        return self.values.copy()

    def read_into(self, raw, start):
        raw[:] = self.values.reshape(-1).view(np.uint8)[start : start + raw.size]


def rounded_to_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def as_cached(x, kv_format):
    """Returns keys or values as rounded by a cache of this format, with NaN where they are no longer finite."""
    with np.errstate(over="ignore"):
        rounded = x if kv_format == "f32" else x.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(x) & np.isfinite(rounded), rounded, np.float32(np.nan))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def place(device, matrix, weights, *, dtype="F32"):
    """Packs an (n_in, n_out) matrix, whose bytes may have another dtype than float32."""
    n_in, n_out = matrix.shape
    weight = device.weight(weights, n_in, n_out)
    assert device.pack(weight, np.ascontiguousarray(matrix).reshape(-1).view(np.uint8), dtype, n_out, True, 0)
    return weight


def unpacked(device, weight):
    """Returns the values of a packed weight, (n_in, n_out) in float64."""
    n_out = weight.shape[0]
    return np.asarray(device.embedding(np.arange(n_out, dtype=np.int32), weight)).T.astype(np.float64)


class Sequences:
    """Sequences of (q, k, v) in one KV cache of a format, computed in chunks of any size.

    Args:
        n_head: query heads. The key/value heads follow from the width of k.
        options: window, slopes (an array) and softcap of the attention.
    """

    def __init__(self, device, sequences, n_head, kv_format="f32", **options):
        self.device, self.sequences, self.n_head = device, sequences, n_head
        if options.get("slopes") is not None:
            options["slopes"] = device.vector(options["slopes"])
        self.options = options
        q, k, _ = sequences[0]
        head_dim = q.shape[1] // n_head
        n_blocks = [-(-len(q) // 64) for q, _, _ in sequences]
        self.cache = device.kv_cache(kv_format, 2, k.shape[1] // head_dim, head_dim, sum(n_blocks) + 1)
        free = list(range(sum(n_blocks), 0, -1))  # in descending order
        self.tables = np.full((len(sequences), max(n_blocks)), -1, np.int32)
        for table, n in zip(self.tables, n_blocks, strict=True):
            table[:n] = [free.pop(0) for _ in range(n)]

    def feed(self, cuts, scale):
        """Computes the rows cuts[s] of each sequence s."""
        starts = np.cumsum([0, *(stop - start for start, stop in cuts)], dtype=np.int32)
        positions = np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in cuts])
        rows = self.device.rows(starts, positions, (tuple(self.tables),), self.cache)
        qkv = [
            self.device.array(np.concatenate([s[i][a:b] for s, (a, b) in zip(self.sequences, cuts, strict=True)]))
            for i in range(3)
        ]
        out = np.asarray(self.device.attention(*qkv, rows, self.cache, 1, self.n_head, scale, **self.options))
        return np.split(out, starts[1:-1])

    def feed_in(self, steps, scale):
        """Computes all rows, steps[s] at a time, and returns the concatenated output of each sequence."""
        outputs = [
            self.feed([(sum(sizes[:step]), sum(sizes[: step + 1])) for sizes in steps], scale)
            for step in range(len(steps[0]))
        ]
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def textbook_attention(q, k, v, n_head, scale, window=None, slopes=None, softcap=None):
    """(N, H·D) queries of the last N rows, (T, K·D) keys and values of one sequence, in float64, by N×T scores."""
    n, t, head_dim = len(q), len(k), q.shape[1] // n_head
    q, k, v = (x.astype(np.float64).reshape(len(x), -1, head_dim).swapaxes(0, 1) for x in (q, k, v))
    k, v = (np.repeat(x, n_head // len(x), axis=0) for x in (k, v))
    distance = np.arange(t) - np.arange(t - n, t)[:, None]
    hidden = (distance > 0) | (distance <= -(window or t))
    outputs = []
    for head in range(n_head):  # one at a time: the scores of all heads may take a gigabyte
        scores = scale * q[head] @ k[head].T
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if slopes is not None:
            scores += float(slopes[head]) * distance
        scores[hidden] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(p / p.sum(-1, keepdims=True) @ v[head])
    return np.concatenate(outputs, axis=1)
