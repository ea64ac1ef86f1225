"""Every operation of every backend against its textbook form in float64."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.protocol import Role
from rushlight.errors import NonFiniteError
from rushlight.nn import ACTIVATIONS, Convolution


class ArrayTensor:
    """A tensor that is in memory already."""

    name, dtype = "test", "F32"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape

    def float32(self):
        return self.values.copy()

    def read_into(self, raw, start):
        raw[:] = np.ascontiguousarray(self.values).reshape(-1).view(np.uint8)[start : start + raw.size]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def close(subject, ops):
    """Asserts that a result is the expected one, as far as the device and dtype go."""

    def close(result, expected):
        result = ops.to_numpy(result)
        assert result.shape == expected.shape
        assert result.dtype == (np.float64 if ops.dtype == "f64" else np.float32)
        assert np.abs(result - expected).max() <= subject.ops_error * np.abs(expected).max()

    return close


@pytest.mark.parametrize("n_in", [1, 2, 7, 8, 17, 33, 64])
@pytest.mark.parametrize("n_out", [1, 5, 31, 32, 48])
@pytest.mark.parametrize("role", [Role.LINEAR, Role.CONV1D])
def test_linear_is_a_matrix_product(ops, close, n_in, n_out, role):
    x, bias = random(3, n_in), random(n_out, seed=2)
    weight = random(n_out, n_in, seed=1) if role is Role.LINEAR else random(n_in, n_out, seed=1)
    in_to_out = (weight.T if role is Role.LINEAR else weight).astype(np.float64)

    placed, placed_bias = ops.load_weight(ArrayTensor(weight), role), ops.load_weight(ArrayTensor(bias), Role.VECTOR)
    close(ops.linear(ops.from_numpy(x), placed, placed_bias), x @ in_to_out + bias)
    close(ops.linear(ops.from_numpy(x), placed, None), x @ in_to_out)


@pytest.mark.parametrize(("size", "before"), [(1, 0), (3, 1), (3, 2), (4, 0), (9, 4)])
def test_a_convolution_is_pytorchs_and_keeps_to_its_sequence(ops, close, size, before):
    weight, bias, x = random(6, 5, size), random(6, seed=1), random(8, 5, seed=2)
    layer = Convolution(5, 6, size, before=before)
    layer.ops, layer.weight, layer.bias = (
        ops,
        ops.load_weight(ArrayTensor(weight), Role.CONVOLUTION),
        ops.load_weight(ArrayTensor(bias), Role.VECTOR),
    )
    batch = Batch.of([Chunk(range(2), 0, [0]), Chunk(range(6), 0, [1])], cache=None)

    parts = []
    for sequence in (x[:2], x[2:]):
        padded = np.pad(sequence.astype(np.float64), ((before, size - 1 - before), (0, 0)))
        rows = range(len(sequence))
        parts += [np.einsum("sc,fcs->f", padded[row : row + size], weight.astype(np.float64)) + bias for row in rows]
    close(layer(ops.from_numpy(x), batch), np.array(parts))


def test_a_tied_head_multiplies_by_the_embedding_table(ops, close):
    table, x = random(11, 6), random(4, 6, seed=1)
    placed = ops.load_weight(ArrayTensor(table), Role.TABLE)
    ids = np.array([3, 0, 10, 3], np.int32)
    close(ops.embedding(ids, placed), table[ids].astype(np.float64))
    close(ops.linear(ops.from_numpy(x), ops.tie(placed), None), x @ table.T.astype(np.float64))


def test_weights_that_are_not_finite_are_named(subject, ops):
    for role, shape in ((Role.VECTOR, (3,)), (Role.LINEAR, (3, 3)), (Role.TABLE, (3, 3))):
        tensor = ArrayTensor(np.full(shape, np.nan))
        if subject.device == "reference":  # keeps what it reads; the sampler refuses what comes of it
            assert np.isnan(ops.load_weight(tensor, role).values).all()
        else:
            with pytest.raises(NonFiniteError, match=r"test: a weight is not a finite .* number"):
                ops.load_weight(tensor, role)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.3])
def test_layer_norm_centres_scales_and_shifts_each_row(ops, close, eps):
    x, weight, bias = 3 * random(4, 20) + 5, random(20, seed=1), random(20, seed=2)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + eps) * weight + bias
    gain, shift = (ops.load_weight(ArrayTensor(values), Role.VECTOR) for values in (weight, bias))
    close(ops.layer_norm(ops.from_numpy(x), gain, shift, eps), expected)


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
def test_activations_follow_their_formulas(ops, close, name):
    x = np.linspace(-30, 30, 601, dtype=np.float32)[None]
    expected = np.array([[FORMULAS[name](float(value)) for value in x[0]]])
    close(ops.activation(ops.from_numpy(x), name), expected)


def test_activations_stay_finite_at_the_ends_of_the_range(ops):
    x = ops.from_numpy(np.array([[-1e12, -1e4, 1e4, 1e12]]))
    if not np.isfinite(ops.to_numpy(x)).all():  # half precision has no such numbers
        x = ops.from_numpy(np.array([[-6e4, -1e4, 1e4, 6e4]]))
    ends = ops.to_numpy(x)[0]
    for name in ACTIVATIONS:
        result = ops.to_numpy(ops.activation(x, name))
        np.testing.assert_allclose(result, [AT_THE_ENDS.get(name, [0, 0, *ends[2:]])], rtol=1e-6)


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
def test_attention_of_a_whole_sequence(ops, close, t, n_head, head_dim):
    q, k, v = (rounded(ops, 3 * random(t, n_head * head_dim, seed=seed)) for seed in range(3))
    result = attend(ops, [(q, k, v)], [[t]], n_head, head_dim, 0.3)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, n_head, 0.3))


def test_attention_never_builds_a_t_by_t_matrix():
    ops, t = open_backend("reference"), 3000
    q, k, v = (random(t, 4, seed=seed) for seed in range(3))
    tracemalloc.start()
    attend(ops, [(q, k, v)], [[t]], 1, 4, 0.5)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < t * t * 4 / 4


def test_attention_scores_far_apart_do_not_overflow(ops, close):
    q, k, v = (rounded(ops, 100 * random(70, 8, seed=seed)) for seed in range(3))
    result = attend(ops, [(q, k, v)], [[70]], 2, 4, 1.0)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, 2, 1.0))


@pytest.mark.parametrize("steps", [[1] * 70, [69, 1], [7] * 10, [64, 6]])
def test_attention_is_the_same_however_the_sequence_is_cut(subject, ops, steps):
    qkv = [random(70, 10, seed=seed) for seed in range(3)]
    cut, whole = (attend(ops, [qkv], [sizes], 2, 5, 0.4)[0] for sizes in (steps, [70]))
    assert subject.same(cut, whole)


def test_sequences_in_a_batch_do_not_see_each_other(subject, ops):
    a, b, c = ([random(t, 12, seed=10 * t + i) for i in range(3)] for t in (5, 90, 66))
    together = attend(ops, [a, b, c], [[4, 1], [89, 1], [2, 64]], 3, 4, 0.5)
    for sequence, result in zip((a, b, c), together, strict=True):
        alone = attend(ops, [sequence], [[len(sequence[0])]], 3, 4, 0.5)[0]
        assert subject.same(result, alone)


def rounded(ops, values):
    """As the device keeps them."""
    return ops.to_numpy(ops.from_numpy(values))


def attend(ops, sequences, steps, n_head, head_dim, scale):
    """Runs sequences of (q, k, v), cut into the given steps, side by side; returns each one's whole output.

    Their blocks are dealt out in turn, backwards, with one between that belongs to nobody, and all hold what a sequence
    before left there.
    """
    n_blocks = [-(-len(q) // BLOCK_SIZE) for q, _, _ in sequences]
    cache = ops.kv_cache(KVShape(2, n_head, head_dim), sum(n_blocks) + 1)
    litter(ops, cache, sum(n_blocks) + 1, n_head, head_dim)
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
        out = ops.to_numpy(ops.attention(*map(ops.from_numpy, rows), batch, layer=1, n_head=n_head, scale=scale))
        for output, (start, stop) in zip(outputs, pairwise(batch.row_starts), strict=True):
            output.append(out[start:stop])
    return [np.concatenate(output) for output in outputs]


def litter(ops, cache, n_blocks, n_head, head_dim):
    """Fills the cache with the keys and values, NaN among them, of a sequence that is gone."""
    n = n_blocks * BLOCK_SIZE
    rubbish = np.full((n, n_head * head_dim), 1e4, np.float32)
    rubbish[::2] = np.nan
    batch = Batch.of([Chunk([0] * n, 0, range(n_blocks))], cache)
    with np.errstate(all="ignore"):
        ops.to_numpy(ops.attention(*[ops.from_numpy(rubbish)] * 3, batch, layer=1, n_head=n_head, scale=1.0))


def test_split_and_take_choose_columns_and_rows(ops):
    x = rounded(ops, random(5, 12))
    for part, expected in zip(ops.split(ops.from_numpy(x), 3), np.split(x, 3, axis=1), strict=True):
        assert np.array_equal(ops.to_numpy(part), expected)
    rows = np.array([4, 0, 4], np.int32)
    assert np.array_equal(ops.to_numpy(ops.take(ops.from_numpy(x), rows)), x[rows])
    assert ops.to_numpy(ops.take(ops.from_numpy(x), rows[:0])).shape == (0, 12)


def test_arrays_add_and_multiply(ops, close):
    a, b = (rounded(ops, random(3, 12, seed=seed)) for seed in range(2))
    x, y = ops.from_numpy(a), ops.from_numpy(b)
    close(x + y, a.astype(np.float64) + b)
    close(x * y, a.astype(np.float64) * b)
