"""Every operation of every backend against its textbook form in float64."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.protocol import Role
from rushlight.nn import ACTIVATIONS, Convolution

TOLERANCES = {"f32": 4e-6, "f64": 1e-14}
"""Of the largest value of the result."""


@pytest.fixture(params=sorted(TOLERANCES))
def ops(request):
    return open_backend("reference", request.param)


class ArrayTensor:
    """A tensor that is in memory already."""

    name, dtype = "test", "F32"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def float32(self):
        return self.values.copy()


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(ops, result, expected):
    result = ops.to_numpy(result)
    assert result.shape == expected.shape
    assert result.dtype == (np.float64 if ops.dtype == "f64" else np.float32)
    error = np.abs(result - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCES[ops.dtype]


@pytest.mark.parametrize("n_in", [1, 2, 7, 8, 17, 33, 64])
@pytest.mark.parametrize("n_out", [1, 5, 31, 32, 48])
@pytest.mark.parametrize("role", [Role.LINEAR, Role.CONV1D])
def test_linear_is_a_matrix_product(ops, n_in, n_out, role):
    x, bias = random(3, n_in), random(n_out, seed=2)
    weight = random(n_out, n_in, seed=1) if role is Role.LINEAR else random(n_in, n_out, seed=1)
    in_to_out = (weight.T if role is Role.LINEAR else weight).astype(np.float64)

    placed, placed_bias = ops.place(ArrayTensor(weight), role), ops.place(ArrayTensor(bias), Role.VECTOR)
    assert_close(ops, ops.linear(x.astype(placed.dtype), placed, placed_bias), x @ in_to_out + bias)
    assert_close(ops, ops.linear(x.astype(placed.dtype), placed, None), x @ in_to_out)


@pytest.mark.parametrize(("size", "before"), [(1, 0), (3, 1), (3, 2), (4, 0), (9, 4)])
def test_a_convolution_is_pytorchs_and_keeps_to_its_sequence(ops, size, before):
    weight, bias, x = random(6, 5, size), random(6, seed=1), random(8, 5, seed=2)
    layer = Convolution(5, 6, size, before=before)
    layer.ops, layer.weight, layer.bias = (
        ops,
        ops.place(ArrayTensor(weight), Role.CONVOLUTION),
        ops.place(ArrayTensor(bias), Role.VECTOR),
    )
    batch = Batch.of([Chunk(range(2), 0, [0]), Chunk(range(6), 0, [1])], cache=None)

    parts = []
    for sequence in (x[:2], x[2:]):
        padded = np.pad(sequence.astype(np.float64), ((before, size - 1 - before), (0, 0)))
        rows = range(len(sequence))
        parts += [np.einsum("sc,fcs->f", padded[row : row + size], weight.astype(np.float64)) + bias for row in rows]
    assert_close(ops, layer(ops.from_numpy(x), batch), np.array(parts))


def test_a_tied_head_multiplies_by_the_embedding_table(ops):
    table, x = random(11, 6), random(4, 6, seed=1)
    placed = ops.place(ArrayTensor(table), Role.TABLE)
    ids = np.array([3, 0, 10, 3], np.int32)
    assert_close(ops, ops.embedding(ids, placed), table[ids].astype(np.float64))
    assert_close(ops, ops.linear(x.astype(placed.dtype), ops.tie(placed), None), x @ table.T.astype(np.float64))


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.3])
def test_layer_norm_centres_scales_and_shifts_each_row(ops, eps):
    x, weight, bias = 3 * random(4, 20) + 5, random(20, seed=1), random(20, seed=2)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + eps) * weight + bias
    gain, shift = (ops.place(ArrayTensor(values), Role.VECTOR) for values in (weight, bias))
    assert_close(ops, ops.layer_norm(x.astype(gain.dtype), gain, shift, eps), expected)


FORMULAS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
}
AT_THE_ENDS = {"sigmoid": [0, 0, 1, 1], "tanh": [-1, -1, 1, 1]}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_follow_their_formulas(ops, name):
    x = np.linspace(-30, 30, 601, dtype=np.float32)[None]
    expected = np.array([[FORMULAS[name](float(value)) for value in x[0]]])
    assert_close(ops, ops.activation(x.astype(np.float64 if ops.dtype == "f64" else np.float32), name), expected)


def test_activations_stay_finite_at_the_ends_of_the_range(ops):
    x = np.array([[-1e12, -1e4, 1e4, 1e12]], np.float64 if ops.dtype == "f64" else np.float32)
    for name in ACTIVATIONS:
        result = ops.to_numpy(ops.activation(x, name))
        np.testing.assert_allclose(result, [AT_THE_ENDS.get(name, [0, 0, 1e4, 1e12])], rtol=1e-6)


def test_the_two_gelus_are_different():
    ops = open_backend("cpu", "f64")
    x = np.linspace(-4, 4, 101)[None]
    assert np.abs(ops.activation(x, "gelu_tanh") - ops.activation(x, "gelu_erf")).max() > 1e-4


def textbook_attention(q, k, v, n_head, scale):
    """All (T, C) of one sequence; builds the T×T matrix."""
    t, c = q.shape
    q, k, v = (x.astype(np.float64).reshape(t, n_head, c // n_head).swapaxes(0, 1) for x in (q, k, v))
    scores = np.where(np.tri(t, dtype=bool), scale * q @ k.swapaxes(1, 2), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(t, c)


@pytest.mark.parametrize("t", [1, 2, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 5])
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 4), (3, 5), (2, 64)])
def test_attention_of_a_whole_sequence(ops, t, n_head, head_dim):
    q, k, v = (3 * random(t, n_head * head_dim, seed=seed) for seed in range(3))
    result = attend(ops, [(q, k, v)], [[t]], n_head, head_dim, 0.3)[0]
    assert_close(ops, result, textbook_attention(q, k, v, n_head, 0.3))


def test_attention_never_builds_a_t_by_t_matrix():
    ops, t = open_backend("reference"), 3000
    q, k, v = (random(t, 4, seed=seed) for seed in range(3))
    tracemalloc.start()
    attend(ops, [(q, k, v)], [[t]], 1, 4, 0.5)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < t * t * 4 / 4


def test_attention_scores_far_apart_do_not_overflow(ops):
    q, k, v = (100 * random(70, 8, seed=seed) for seed in range(3))
    assert_close(ops, attend(ops, [(q, k, v)], [[70]], 2, 4, 1.0)[0], textbook_attention(q, k, v, 2, 1.0))


@pytest.mark.parametrize("steps", [[1] * 70, [69, 1], [7] * 10, [64, 6]])
def test_attention_is_the_same_bits_however_the_sequence_is_cut(ops, steps):
    qkv = [random(70, 10, seed=seed) for seed in range(3)]
    assert np.array_equal(attend(ops, [qkv], [steps], 2, 5, 0.4)[0], attend(ops, [qkv], [[70]], 2, 5, 0.4)[0])


def test_sequences_in_a_batch_do_not_see_each_other(ops):
    a, b, c = ([random(t, 12, seed=10 * t + i) for i in range(3)] for t in (5, 90, 66))
    together = attend(ops, [a, b, c], [[3, 2], [80, 10], [2, 64]], 3, 4, 0.5)
    for sequence, result in zip((a, b, c), together, strict=True):
        alone = attend(ops, [sequence], [[len(sequence[0])]], 3, 4, 0.5)[0]
        assert np.array_equal(result, alone)


def attend(ops, sequences, steps, n_head, head_dim, scale):
    """Runs sequences of (q, k, v), cut into the given steps, side by side; returns each one's whole output.

    Their blocks are dealt out in turn, backwards, with one between that belongs to nobody and holds rubbish.
    """
    float_type = np.float64 if ops.dtype == "f64" else np.float32
    n_blocks = [-(-len(q) // BLOCK_SIZE) for q, _, _ in sequences]
    cache = ops.kv_cache(KVShape(2, n_head, head_dim), sum(n_blocks) + 1)
    cache.keys[:, 0] = cache.values[:, 0] = 1e9
    free = list(range(sum(n_blocks), 0, -1))
    tables = [[free.pop(0) for _ in range(n)] for n in n_blocks]

    outputs = [[] for _ in sequences]
    for step in range(len(steps[0])):
        cuts = [(sum(sizes[:step]), sum(sizes[: step + 1])) for sizes in steps]
        chunks = [Chunk([0] * (stop - start), start, table) for (start, stop), table in zip(cuts, tables, strict=True)]
        rows = [
            np.concatenate([s[i][start:stop] for s, (start, stop) in zip(sequences, cuts, strict=True)]).astype(
                float_type
            )
            for i in range(3)
        ]
        batch = Batch.of(chunks, cache)
        out = ops.to_numpy(ops.attention(*rows, batch, layer=1, n_head=n_head, scale=scale))
        for output, (start, stop) in zip(outputs, pairwise(batch.row_starts), strict=True):
            output.append(out[start:stop])
    return [np.concatenate(output) for output in outputs]


def test_split_and_take_choose_columns_and_rows(ops):
    x = random(5, 12)
    for part, expected in zip(ops.split(x, 3), np.split(x, 3, axis=1), strict=True):
        assert np.array_equal(ops.to_numpy(part), expected)
    rows = np.array([4, 0, 4], np.int32)
    assert np.array_equal(ops.to_numpy(ops.take(x, rows)), x[rows])
    assert ops.to_numpy(ops.take(x, rows[:0])).shape == (0, 12)
