"""Norms, activations, causal attention, arithmetic and views, compared with float64 formulas."""

import math

import numpy as np
import pytest
from native_helpers import Sequences, as_cached, place, random, textbook_attention

from rushlight.backends import _native
from rushlight.nn import ACTIVATIONS

EVERY_LENGTH = [*range(1, 34), 63, 64, 65, 100]


def test_layer_norm_equals_the_formula(device):
    for n in EVERY_LENGTH:
        x, weight, bias = 3 * random(4, n) + 5, random(n, seed=1), random(n, seed=2)
        x64 = x.astype(np.float64)
        expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + 1e-5) * weight + bias
        result = np.asarray(device.layer_norm(device.array(x), device.vector(weight), device.vector(bias), 1e-5))
        assert np.abs(result - expected).max() <= (1e-4 if n < 3 else 4e-6) * max(1, np.abs(expected).max())


def test_layer_norm_without_bias_equals_one_with_zeros(device):
    for n in EVERY_LENGTH:
        x, weight = device.array(3 * random(4, n) + 5), device.vector(random(n, seed=1))
        zeros = device.vector(np.zeros(n, np.float32))
        without, with_zeros = (np.asarray(device.layer_norm(x, weight, bias, 1e-5)) for bias in (None, zeros))
        assert np.array_equal(without, with_zeros)


@pytest.mark.parametrize("n_groups", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_equals_the_formula(device, offset, n_groups):
    for n in EVERY_LENGTH:
        x, weight, eps = 3 * random(4, n_groups * n) + 1, random(n, seed=1), 1e-5
        groups = x.astype(np.float64).reshape(4, n_groups, n)
        expected = groups / np.sqrt(np.square(groups).mean(-1, keepdims=True) + eps) * (offset + weight)
        result = np.asarray(device.rms_norm(device.array(x), device.vector(weight), eps, offset)).reshape(
            4, n_groups, n
        )
        assert np.abs(result - expected).max() <= 1e-6 * max(1, np.abs(expected).max())
        for g in range(n_groups):  # bit-identical to a norm of the group by itself
            part = device.array(np.ascontiguousarray(x[:, g * n : (g + 1) * n]))
            assert np.array_equal(np.asarray(device.rms_norm(part, device.vector(weight), eps, offset)), result[:, g])


def test_rms_norm_of_incomplete_groups_is_refused(device):
    with pytest.raises(ValueError, match="x has 10 columns, not a multiple of the weight's length 4"):
        device.rms_norm(device.array(random(2, 10)), device.vector(random(4)), 1e-5)


def test_arrays_multiply_by_a_number(device):
    for n in EVERY_LENGTH:
        x = random(3, n)
        for number in (0.22, -3, 25.298221281347036, np.float32(0.1), np.float64(0.1), True):
            expected = x * np.float32(number)
            assert np.array_equal(np.asarray(device.array(x) * number), expected)
            assert np.array_equal(np.asarray(number * device.array(x)), expected)


@pytest.mark.parametrize("other", ["2", None, [2.0], 2j])
def test_arrays_do_not_multiply_by_other_types(device, other):
    for multiply in (lambda x: x * other, lambda x: other * x):
        with pytest.raises(TypeError):
            multiply(device.array(random(3, 4)))


def test_arrays_add(device):
    for n in EVERY_LENGTH:
        a, b = random(3, n), random(3, n, seed=1)
        assert np.array_equal(np.asarray(device.array(a) + device.array(b)), a + b)


FORMULAS = {
    # 0.5 (1 + tanh(u)) in the form that keeps its precision where tanh is nearly -1
    "gelu_tanh": lambda x: x / (1 + math.exp(min(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), 700))),
    "gelu_erf": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
}
AT_THE_ENDS = {"sigmoid": [0, 0, 0.5, 1, 1], "tanh": [-1, -1, 0, 1, 1]}
"""Activations that do not grow as x does: their values at -1e12, -1e4, 0, 1e4 and 1e12."""


def units(result, expected):
    """The largest error in units in the last place of the expected values."""
    expected = np.asarray(expected)
    return (np.abs(result - expected) / np.spacing(np.abs(expected).astype(np.float32))).max()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_accurate_to_a_few_units_in_the_last_place(device, name):
    x = np.linspace(-4, 12, 4801, dtype=np.float32)[None]
    expected = [[FORMULAS[name](float(value)) for value in x[0]]]
    # The exponent of a small result is a rounded number of about 10, which is ten units in its last place.
    assert units(np.asarray(device.activation(device.array(x), name)), expected) <= 32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_a_small_absolute_error_in_their_tails(device, name):
    x = np.linspace(-60, 60, 2401, dtype=np.float32)[None]
    expected = np.array([[FORMULAS[name](float(value)) for value in np.maximum(x[0], -25)]])
    result = np.asarray(device.activation(device.array(x), name))
    assert (np.abs(result - expected)[x >= -25] <= 4e-7 * np.maximum(1, np.abs(x[x >= -25]))).all()
    assert (np.abs(result[x < -25] - AT_THE_ENDS.get(name, [0])[0]) < 1e-8).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_do_not_depend_on_the_length(device, name):
    for n in EVERY_LENGTH:
        x = random(2, n)
        entire = np.asarray(device.activation(device.array(x), name))
        each = [
            [np.asarray(device.activation(device.array(value.reshape(1, 1)), name))[0, 0] for value in row] for row in x
        ]
        assert np.array_equal(entire, np.array(each, np.float32))


def test_activations_at_the_ends_of_the_range(device):
    x = device.array(np.array([[-1e12, -1e4, 0.0, 1e4, 1e12, np.nan]], np.float32))
    for name in ACTIVATIONS:
        expected = [[*AT_THE_ENDS.get(name, [0, 0, 0, 1e4, 1e12]), np.nan]]
        np.testing.assert_allclose(np.asarray(device.activation(x, name)), expected, rtol=1e-6, atol=1e-36)


def test_exp_is_accurate_to_units_in_the_last_place(device):
    x = np.linspace(-87, 88, 20011, dtype=np.float32)[None]
    assert units(np.asarray(device.exp(device.array(x))), np.exp(x.astype(np.float64))) <= 1.5
    edges = np.array([[-np.inf, -200, -88, 0, 89, 200, np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(
        np.asarray(device.exp(device.array(edges))), [[0, 0, 0, 1, np.inf, np.inf, np.inf, np.nan]]
    )


@pytest.mark.parametrize("t", [1, 2, 63, 64, 65, 197])
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 1), (3, 5), (2, 16), (2, 33), (1, 64), (1, 200)])
def test_attention_equals_the_formula(device, kv_format, t, n_head, head_dim):
    """With the same tolerance in every format: the textbook gets keys and values as rounded by the cache."""
    q, k, v = (3 * random(t, n_head * head_dim, seed=seed) for seed in range(3))
    scale = 0.5 / math.sqrt(head_dim)
    expected = textbook_attention(q, as_cached(k, kv_format), as_cached(v, kv_format), n_head, scale)
    result = Sequences(device, [(q, k, v)], n_head, kv_format).feed_in([[t]], scale)[0]
    assert np.abs(result - expected).max() <= 4e-6 * np.abs(expected).max()


def every_half():
    """Every value of f16 as float32, and the midpoint between it and the next."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    edges = np.array([65504, 65519.996, 65520, 1e30, np.inf], np.float32)
    return np.concatenate([halves, (finite[:-1] + finite[1:]) / 2, edges, -edges])


def test_values_are_stored_to_nearest_even_and_never_infinite(device, kv_format):
    values = np.resize(every_half(), (1, 1 << 17))
    zeros = np.zeros_like(values)
    found = Sequences(device, [(zeros, zeros, values)], 1 << 11, kv_format).feed_in([[1]], 1.0)[0]
    np.testing.assert_array_equal(found, as_cached(values, kv_format))


@pytest.mark.parametrize("beyond", [65520.0, -65520.0, 1e38, -np.inf])
def test_a_key_beyond_the_format_makes_results_nan(device, kv_format, beyond):
    """An infinite score would vanish in softmax, and change the output silently."""
    qkv = [random(70, 8, seed=seed) for seed in range(3)]
    qkv[1][66, 5] = beyond
    result = Sequences(device, [qkv], 2, kv_format).feed_in([[60, 10]], 1e-6)[0]
    lost = np.isnan(as_cached(qkv[1], kv_format)[66, 5])
    assert lost == (kv_format == "f16" or np.isinf(beyond))
    assert np.isfinite(result[:66]).all()
    assert np.isfinite(result[:, :4]).all()
    assert (np.isnan(result[66:, 4:]) == lost).all()


def test_attention_scores_far_apart_do_not_overflow(device):
    qkv = [100 * random(70, 8, seed=seed) for seed in range(3)]
    result = Sequences(device, [qkv], 2).feed_in([[70]], 1.0)[0]
    expected = textbook_attention(*qkv, 2, 1.0)
    assert np.abs(result - expected).max() <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("steps", [[1] * 70, [69, 1], [7] * 10, [64, 6], [17, 53]])
def test_attention_is_bit_identical_in_any_chunks(isa, kv_format, threads, steps):
    qkv = [random(70, 10, seed=seed) for seed in range(3)]
    cut = Sequences(_native.Device(threads, isa), [qkv], 2, kv_format).feed_in([steps], 0.4)[0]
    assert np.array_equal(cut, Sequences(_native.Device(1, isa), [qkv], 2, kv_format).feed_in([[70]], 0.4)[0])


def test_sequences_in_a_batch_are_independent(device, kv_format):
    sequences = [[random(t, 12, seed=10 * t + i) for i in range(3)] for t in (5, 90, 66)]
    batched = Sequences(device, sequences, 3, kv_format).feed_in([[3, 2], [80, 10], [2, 64]], 0.5)
    for sequence, result in zip(sequences, batched, strict=True):
        solo = Sequences(device, [sequence], 3, kv_format).feed_in([[len(sequence[0])]], 0.5)[0]
        assert np.array_equal(result, solo)


def test_stale_contents_of_the_cache_are_not_read(device, kv_format):
    stale = [np.full((64, 8), np.nan, np.float32)] * 3
    qkv = [random(64, 8, seed=seed) for seed in range(3)]
    used = Sequences(device, [qkv], 2, kv_format)
    used.sequences = [stale]
    used.feed([(0, 64)], 1.0)
    used.sequences = [qkv]
    fresh = Sequences(device, [qkv], 2, kv_format)
    assert np.array_equal(used.feed_in([[10, 54]], 1.0)[0], fresh.feed_in([[64]], 1.0)[0])


def test_a_cache_of_integers_is_refused(device):
    with pytest.raises(ValueError, match="keys and values must be f32 or f16"):
        device.kv_cache("int8", 1, 1, 4, 1)


@pytest.mark.parametrize(
    ("starts", "positions", "tables", "message"),
    [
        ([0, 2], [0], [[0]], "inconsistent"),
        ([0, 0], [], [[0]], "sequence 0 has no rows"),
        ([0, 1], [64], [[0]], "beyond the sequence's blocks"),
        ([0, 1], [-1], [[0]], "beyond the sequence's blocks"),
        ([0, 1], [0], [[3]], "not in the cache"),
        ([0, 1], [70], [[0, -1]], "not in the cache"),
    ],
)
def test_a_batch_that_does_not_fit_the_cache_is_refused(device, starts, positions, tables, message):
    cache = device.kv_cache("f32", 1, 1, 4, 3)
    with pytest.raises(ValueError, match=message):
        device.rows(*(np.array(each, np.int32) for each in (starts, positions, [tables])), cache)


def test_views(device):
    x = random(5, 12)
    array = device.array(x)
    assert array.shape == (5, 12)
    for part, expected in zip(device.split(array, 3), np.split(x, 3, axis=1), strict=True):
        assert np.array_equal(np.asarray(part), expected)
    rows = np.array([4, 0, 4], np.int32)
    assert np.array_equal(np.asarray(device.take(array, rows)), x[rows])
    assert np.asarray(device.take(array, rows[:0])).shape == (0, 12)
    with pytest.raises(ValueError, match="row 5 is not in"):
        device.take(array, np.array([5], np.int32))
    with pytest.raises(ValueError, match="evenly"):
        device.split(array, 5)


def test_split_by_sizes(device):
    x = random(5, 12)
    parts = device.split(device.array(x), [7, 1, 4])
    for part, expected in zip(parts, np.split(x, [7, 8], axis=1), strict=True):
        assert np.array_equal(np.asarray(part), expected)
    for sizes in ([7, 1, 3], [7, 6], [13, -1], [12, 0], []):
        with pytest.raises(ValueError, match="sizes do not add up to the 12 columns"):
            device.split(device.array(x), sizes)


@pytest.mark.parametrize("sizes", [3, [1, 1, 1], [2, 1], [1, 2], [3]])
def test_split_of_each_group(device, sizes):
    x = random(5, 12)
    groups = x.reshape(5, 4, 3)
    widths = [1] * sizes if isinstance(sizes, int) else sizes
    parts = device.split(device.array(x), sizes, groups=4)
    for part, expected in zip(parts, np.split(groups, np.cumsum(widths)[:-1], axis=2), strict=True):
        assert np.array_equal(np.asarray(part), expected.reshape(5, -1))


def test_split_into_groups_that_are_not_equal_is_refused(device):
    x = device.array(random(5, 12))
    for groups in (0, -1, 5):
        with pytest.raises(ValueError, match=r"split evenly|equal groups"):
            device.split(x, 3, groups=groups)
        with pytest.raises(ValueError, match="equal groups"):
            device.split(x, [2], groups=groups)
    with pytest.raises(ValueError, match="add up to the 3 columns"):
        device.split(x, [2, 2], groups=4)


def test_embedding_from_a_later_row(device):
    table = place(device, random(8, 20), "f32")
    ids = np.array([0, 3, 17], np.int32)
    shifted = np.asarray(device.embedding(ids, table, 2))
    assert np.array_equal(shifted, np.asarray(device.embedding(ids + 2, table)))
    with pytest.raises(ValueError, match="id 18 is beyond the table's 18 rows from row 2"):
        device.embedding(np.array([18], np.int32), table, 2)
    with pytest.raises(ValueError, match="id -1 is beyond"):
        device.embedding(np.array([-1], np.int32), table, 2)
    for first_row in (-1, 21):
        with pytest.raises(ValueError, match=f"first_row is {first_row}, the table has 20 rows"):
            device.embedding(ids, table, first_row)


def test_arrays_multiply_elementwise(device):
    for n in EVERY_LENGTH:
        a, b = random(3, n), random(3, n, seed=1)
        assert np.array_equal(np.asarray(device.array(a) * device.array(b)), a * b)


def test_unfold_puts_rows_side_by_side(device):
    x, rows = random(4, 5), np.array([[-1, 0], [0, 1], [3, -1]], np.int32)
    padded = np.vstack([x, np.zeros(5, np.float32)])
    assert np.array_equal(np.asarray(device.unfold(device.array(x), rows)), padded[rows].reshape(3, 10))
    with pytest.raises(ValueError, match="row 4 is not in"):
        device.unfold(device.array(x), np.array([[4]], np.int32))
    with pytest.raises(ValueError, match="row -2 is not in"):
        device.unfold(device.array(x), np.array([[-2]], np.int32))


def test_a_view_outlives_its_array_and_device(isa):
    view = np.asarray(_native.Device(2, isa).array(random(3, 5)))
    assert np.array_equal(view, random(3, 5))


def test_an_array_is_a_buffer(device):
    assert memoryview(device.array(random(2, 3))).strides == (128, 4)  # rows are padded to whole panels
    assert bytes(device.array(random(2, 32))) == random(2, 32).tobytes()
