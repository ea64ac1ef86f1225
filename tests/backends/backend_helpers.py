"""Helpers for the backend tests: tensors in memory, textbook attention, chunked sequences over a KV cache."""

from itertools import pairwise

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.protocol import Role


class ArrayTensor:
    """A tensor in memory."""

    dtype = "F32"

    def __init__(self, values, name="test"):
        self.name = name
        self.values = np.ascontiguousarray(values, np.float32)
        self.shape = np.shape(values)

    def float32(self):
        return self.values.copy()

    def read_into(self, raw, start):
        raw[:] = self.values.reshape(-1).view(np.uint8)[start : start + raw.size]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(ops, values):
    """Returns the values as the device rounds them."""
    return ops.to_numpy(ops.from_numpy(values))


def constant(ops, values):
    return ops.load_weight(ArrayTensor(values), Role.CONSTANT)


def alibi_slopes(n_head):
    return (2.0 ** (-8 * np.arange(1, n_head + 1) / n_head)).astype(np.float32)


def textbook_attention(q, k, v, n_head, scale, *, window=None, slopes=None, softcap=None):
    """(T, H·D), (T, K·D) ×2 of one sequence -> (T, H·D) in float64; builds the T×T matrix of each head."""
    t, head_dim = len(q), q.shape[1] // n_head
    q, k, v = (x.astype(np.float64).reshape(t, -1, head_dim) for x in (q, k, v))
    group = n_head // k.shape[1]
    distance = np.arange(t) - np.arange(t)[:, None]
    visible = (distance <= 0) & (distance > -(window or t))
    heads = []
    for h in range(n_head):
        scores = scale * q[:, h] @ k[:, h // group].T
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if slopes is not None:
            scores = scores + slopes[h] * distance
        scores = np.where(visible, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ v[:, h // group])
    return np.concatenate(heads, axis=1)


def attend(ops, sequences, steps, n_head, scale, **options):
    """Runs sequences of (q, k, v), cut into the given steps, in one batch; returns each one's entire output.

    Their blocks are in reverse order, with one free block at the beginning of the cache, and all hold what a finished
    sequence left there. `options` are those of `Backend.attention`, slopes as an array.
    """
    head_dim = sequences[0][0].shape[1] // n_head
    n_kv_head = sequences[0][1].shape[1] // head_dim
    n_blocks = [-(-len(q) // BLOCK_SIZE) for q, _, _ in sequences]
    cache = ops.kv_cache(KVShape(2, n_kv_head, head_dim), sum(n_blocks) + 1)
    fill_with_stale_values(ops, cache, range(sum(n_blocks) + 1), n_kv_head, head_dim)
    free = list(range(sum(n_blocks), 0, -1))
    tables = [[free.pop(0) for _ in range(n)] for n in n_blocks]

    outputs = [[] for _ in sequences]
    for step in range(len(steps[0])):
        cuts = [(sum(sizes[:step]), sum(sizes[: step + 1])) for sizes in steps]
        chunks = [Chunk([0] * (stop - start), start, table) for (start, stop), table in zip(cuts, tables, strict=True)]
        rows = [
            np.concatenate([s[i][start:stop] for s, (start, stop) in zip(sequences, cuts, strict=True)])
            for i in range(3)
        ]
        batch = Batch.of(chunks, cache)
        out = attend_step(ops, rows, batch, n_head, scale, **options)
        for output, (start, stop) in zip(outputs, pairwise(batch.row_starts), strict=True):
            output.append(out[start:stop])
    return [np.concatenate(output) for output in outputs]


def attend_step(ops, qkv, batch, n_head, scale, *, layer=1, **options):
    """Calls `Backend.attention` once, by default on layer 1, with NumPy arrays in and out."""
    if options.get("slopes") is not None:
        options["slopes"] = constant(ops, options["slopes"])
    q, k, v = map(ops.from_numpy, qkv)
    return ops.to_numpy(ops.attention(q, k, v, batch, layer=layer, n_head=n_head, scale=scale, **options))


def fill_with_stale_values(ops, cache, blocks, n_kv_head, head_dim):
    """Fills cache blocks with the stale keys and values of a finished sequence, NaN included."""
    n = len(blocks) * BLOCK_SIZE
    stale = np.full((n, n_kv_head * head_dim), 1e4, np.float32)
    stale[::2] = np.nan
    batch = Batch.of([Chunk([0] * n, 0, blocks)], cache)
    with np.errstate(all="ignore"):
        attend_step(ops, [stale] * 3, batch, n_kv_head, 1.0)
