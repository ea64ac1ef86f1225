"""Every operation of every backend but attention and sampling, compared with its formula in float64."""

import math

import numpy as np
import pytest
from backend_helpers import ArrayTensor, constant, random, rounded

from rushlight.backends import open_backend
from rushlight.backends.batch import Batch, Chunk
from rushlight.backends.protocol import Role
from rushlight.errors import NonFiniteError
from rushlight.nn import ACTIVATIONS, Convolution


def vector(ops, values):
    return ops.load_weight(ArrayTensor(values), Role.VECTOR)


@pytest.mark.parametrize("n_out", [1, 5, 31, 32, 48])
@pytest.mark.parametrize("role", [Role.LINEAR, Role.CONV1D])
def test_linear_is_a_matrix_product(ops, close, n_out, role):
    for n_in in [1, 2, 7, 8, 17, 33, 64]:
        x, bias = random(3, n_in), random(n_out, seed=2)
        values = random(n_out, n_in, seed=1) if role is Role.LINEAR else random(n_in, n_out, seed=1)
        in_to_out = (values.T if role is Role.LINEAR else values).astype(np.float64)

        weight = ops.load_weight(ArrayTensor(values), role)
        close(ops.linear(ops.from_numpy(x), weight, vector(ops, bias)), x @ in_to_out + bias)
        close(ops.linear(ops.from_numpy(x), weight, None), x @ in_to_out)


@pytest.mark.parametrize(("size", "before"), [(1, 0), (3, 1), (3, 2), (4, 0), (9, 4)])
def test_a_convolution_equals_pytorchs_and_stays_within_its_sequence(ops, close, size, before):
    weight, bias, x = random(6, 5, size), random(6, seed=1), random(8, 5, seed=2)
    layer = Convolution(5, 6, size, before=before)
    layer.ops, layer.bias = ops, vector(ops, bias)
    layer.weight = ops.load_weight(ArrayTensor(weight), Role.CONVOLUTION)
    batch = Batch.of([Chunk(range(2), 0, [0]), Chunk(range(6), 0, [1])], cache=None)

    parts = []
    for sequence in (x[:2], x[2:]):
        padded = np.pad(sequence.astype(np.float64), ((before, size - 1 - before), (0, 0)))
        rows = range(len(sequence))
        parts += [np.einsum("sc,fcs->f", padded[row : row + size], weight.astype(np.float64)) + bias for row in rows]
    close(layer(ops.from_numpy(x), batch), np.array(parts))


def test_a_tied_head_multiplies_by_the_embedding_table(ops, close):
    values, x = random(11, 6), random(4, 6, seed=1)
    table = ops.load_weight(ArrayTensor(values), Role.TABLE)
    ids = np.array([3, 0, 10, 3], np.int32)
    close(ops.embedding(ids, table), values[ids].astype(np.float64))
    close(ops.linear(ops.from_numpy(x), ops.tie(table), None), x @ values.T.astype(np.float64))


@pytest.mark.parametrize("first_row", [0, 1, 2])
def test_an_embedding_may_start_at_a_later_row(ops, close, first_row):
    values, ids = random(11, 6), np.array([3, 0, 8, 3], np.int32)
    table = ops.load_weight(ArrayTensor(values), Role.TABLE)
    close(ops.embedding(ids, table, first_row), values[ids + first_row].astype(np.float64))


# Weights

SHAPES = {
    Role.VECTOR: (70,),
    Role.TABLE: (11, 70),
    Role.LINEAR: (5, 70),
    Role.CONV1D: (70, 5),
    Role.CONVOLUTION: (5, 7, 3),
    Role.CONSTANT: (70,),
}


@pytest.mark.parametrize("role", SHAPES)
def test_the_values_of_a_weight_can_be_read(subject, ops, role):
    expected = random(*SHAPES[role])
    weight = ops.load_weight(ArrayTensor(expected), role)
    ops.finish_loading()
    if role not in (Role.VECTOR, Role.CONSTANT):
        assert weight.nbytes >= expected.size // 2
    for _ in range(2):
        values = ops.weight_values(weight)
        assert (values.dtype, values.shape) == (np.float32, expected.shape)
        if role is Role.CONSTANT:
            assert np.array_equal(values, expected)  # float32, whatever the dtype of the weights
        else:
            assert np.abs(values - expected).max() <= subject.ops_error * np.abs(expected).max()
        values[:] = 0  # a copy
    if role is Role.TABLE:
        assert ops.weight_values(ops.tie(weight)).shape == expected.shape


def test_non_finite_weights_are_named(subject, ops):
    for role, shape in ((Role.VECTOR, (3,)), (Role.LINEAR, (3, 3)), (Role.TABLE, (3, 3))):
        tensor = ArrayTensor(np.full(shape, np.nan))
        if subject.device == "reference":  # keeps what it reads; sampling refuses the logits that follow
            assert np.isnan(ops.weight_values(ops.load_weight(tensor, role))).all()
        else:
            with pytest.raises(NonFiniteError, match=r"test: a weight is not a finite .* number"):
                ops.load_weight(tensor, role)


@pytest.mark.parametrize("role", [Role.VECTOR, Role.LINEAR])
def test_the_reference_backend_refuses_arithmetic_with_weights(role):
    """Like packed weights: a port that computes with one fails during development."""
    ops = open_backend("reference")
    weight = ops.load_weight(ArrayTensor(random(*SHAPES[role])), role)
    x = random(2, 70)
    for compute in (
        lambda: weight * x,
        lambda: x * weight,
        lambda: 2.0 * weight,
        lambda: x + weight,
        lambda: weight + 1,
        lambda: x @ weight,
        lambda: -weight,
        lambda: weight[0],
        lambda: np.asarray(weight),
        lambda: list(weight),
    ):
        with pytest.raises(TypeError, match=r'pass it to an operation .*self\.values\("weight"\)'):
            compute()


# Norms


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.3])
def test_layer_norm_centres_scales_and_shifts_each_row(ops, close, eps):
    x, weight, bias = 3 * random(4, 20) + 5, random(20, seed=1), random(20, seed=2)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + eps) * weight + bias
    close(ops.layer_norm(ops.from_numpy(x), vector(ops, weight), vector(ops, bias), eps), expected)


def test_layer_norm_without_a_bias(ops, close):
    x, weight = 3 * random(4, 20) + 5, random(20, seed=1)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(x64.var(1, keepdims=True) + 1e-5) * weight
    close(ops.layer_norm(ops.from_numpy(x), vector(ops, weight), None, 1e-5), expected)


@pytest.mark.parametrize(("groups", "size"), [(1, 20), (3, 5), (1, 1), (4, 33), (2, 64)])
@pytest.mark.parametrize(("eps", "offset"), [(1e-6, 0.0), (1e-5, 1.0), (0.3, 1.0)])
def test_rms_norm_scales_each_group_of_channels(ops, close, groups, size, eps, offset):
    x, weight = 3 * random(4, groups * size) + 1, random(size, seed=1)
    grouped = x.astype(np.float64).reshape(4, groups, size)
    expected = (
        grouped / np.sqrt(np.square(grouped).mean(-1, keepdims=True) + eps) * (offset + weight.astype(np.float64))
    )
    close(ops.rms_norm(ops.from_numpy(x), vector(ops, weight), eps, offset), expected.reshape(x.shape))


# Activations

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
    if not np.isfinite(ops.to_numpy(x)).all():  # out of the range of half precision
        x = ops.from_numpy(np.array([[-6e4, -1e4, 1e4, 6e4]]))
    ends = ops.to_numpy(x)[0]
    for name in ACTIVATIONS:
        result = ops.to_numpy(ops.activation(x, name))
        np.testing.assert_allclose(result, [AT_THE_ENDS.get(name, [0, 0, *ends[2:]])], rtol=1e-6)


def test_the_two_gelus_are_different():
    ops = open_backend("cpu", "f64")
    x = np.linspace(-4, 4, 101)[None]
    assert np.abs(ops.activation(x, "gelu_tanh") - ops.activation(x, "gelu_erf")).max() > 1e-4


# Columns and rows


def test_split_and_take_select_columns_and_rows(ops):
    x = rounded(ops, random(5, 12))
    for part, expected in zip(ops.split(ops.from_numpy(x), 3), np.split(x, 3, axis=1), strict=True):
        assert np.array_equal(ops.to_numpy(part), expected)
    rows = np.array([4, 0, 4], np.int32)
    assert np.array_equal(ops.to_numpy(ops.take(ops.from_numpy(x), rows)), x[rows])
    assert ops.to_numpy(ops.take(ops.from_numpy(x), rows[:0])).shape == (0, 12)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    ("sizes", "groups"), [([3, 20, 7], 1), ([10, 5, 5], 3), ([1], 2), (3, 4), (1, 1), ([6, 2, 2], 1), (2, 15)]
)
def test_split_by_sizes_and_groups(ops, n, sizes, groups):
    """Part i is the i-th part of every group, side by side."""
    expected_sizes = [2] * sizes if isinstance(sizes, int) else sizes
    x = rounded(ops, random(n, groups * sum(expected_sizes)))
    parts = ops.split(ops.from_numpy(x), sizes, groups=groups)
    grouped = x.reshape(n, groups, -1)
    ends = np.cumsum(expected_sizes)
    assert len(parts) == len(expected_sizes)
    for part, size, end in zip(parts, expected_sizes, ends, strict=True):
        assert np.array_equal(ops.to_numpy(part), grouped[:, :, end - size : end].reshape(n, -1))


def test_split_parts_can_be_used_in_other_operations(ops, close):
    """The parts may be views, whose rows are not contiguous."""
    x, weight, gain = rounded(ops, random(3, 24)), random(5, 8, seed=1), random(4, seed=2)
    for sizes, groups in (([6, 8, 10], 1), ([4, 4], 3)):
        part = ops.split(ops.from_numpy(x), sizes, groups=groups)[1]
        values = ops.to_numpy(part).astype(np.float64)
        if values.shape[1] == 8:
            close(ops.linear(part, ops.load_weight(ArrayTensor(weight), Role.LINEAR), None), values @ weight.T)
        grouped = values.reshape(3, -1, 4)
        expected = grouped / np.sqrt(np.square(grouped).mean(-1, keepdims=True) + 1e-5) * gain
        close(ops.rms_norm(part, vector(ops, gain), 1e-5), expected.reshape(values.shape))
        close(part + part, 2 * values)


# Rotary position embedding


def textbook_angles(positions, frequencies, scale=1.0):
    """Cosines and sines of the float32 product, in float64."""
    angle = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    return scale * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


POSITIONS = np.array([0, 1, 2, 63, 500, 7999, 131071], np.int32)
FREQUENCIES = (10000.0 ** -np.linspace(0, 0.95, 5)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1.19])
def test_angles_are_the_cosines_and_sines_of_float32_products(ops, scale):
    found = ops.to_numpy(ops.angles(POSITIONS, constant(ops, FREQUENCIES), scale))
    expected = textbook_angles(POSITIONS, FREQUENCIES, scale)
    assert found.shape == (7, 10)
    assert np.abs(found - expected).max() <= 3e-7  # at every dtype of the weights


def textbook_rotary(x, angles, n_head, *, interleaved):
    """Each pair of channels as a complex number, times e^(i·angle)."""
    half = angles.shape[1] // 2
    heads = x.astype(np.float64).reshape(len(x), n_head, -1)
    turn = (angles[:, :half] + 1j * angles[:, half:])[:, None]
    first = np.arange(half) * 2 if interleaved else np.arange(half)
    second = first + (1 if interleaved else half)
    turned = (heads[..., first] + 1j * heads[..., second]) * turn
    heads[..., first], heads[..., second] = turned.real, turned.imag
    return heads.reshape(x.shape)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 10), (4, 10), (3, 13), (2, 64)], ids=str)
def test_rotary_turns_the_first_channels_of_each_head(ops, close, n_head, head_dim, interleaved):
    """Ten channels: all of a head, or a part of it."""
    x = rounded(ops, random(len(POSITIONS), n_head * head_dim))
    expected = textbook_rotary(x, textbook_angles(POSITIONS, FREQUENCIES), n_head, interleaved=interleaved)
    angles = ops.angles(POSITIONS, constant(ops, FREQUENCIES))
    close(ops.rotary(ops.from_numpy(x), angles, n_head, interleaved=interleaved), expected)


def test_rotary_leaves_the_other_channels_and_its_argument_unchanged(ops):
    x = rounded(ops, random(7, 26))
    array = ops.from_numpy(x.copy())
    for part in (
        ops.angles(POSITIONS, constant(ops, FREQUENCIES)),
        ops.angles(POSITIONS, constant(ops, FREQUENCIES[:1])),
    ):
        n_turned = part.shape[1]
        found = ops.to_numpy(ops.rotary(array, part, 2)).reshape(7, 2, 13)
        assert np.array_equal(found[..., n_turned:], x.reshape(7, 2, 13)[..., n_turned:])
    assert np.array_equal(ops.to_numpy(array), x)


# Sums and products


def test_arrays_add_and_multiply(ops, close):
    a, b = (rounded(ops, random(3, 12, seed=seed)) for seed in range(2))
    x, y = ops.from_numpy(a), ops.from_numpy(b)
    close(x + y, a.astype(np.float64) + b)
    close(x * y, a.astype(np.float64) * b)


@pytest.mark.parametrize("number", [0.125, -3, math.sqrt(20)])
def test_arrays_multiply_by_a_number(ops, close, number):
    a, weight, bias = rounded(ops, random(3, 12)), random(5, 12, seed=1), random(5, seed=2)
    x = ops.from_numpy(a)
    close(x * number, a.astype(np.float64) * number)
    product = ops.linear(x, ops.load_weight(ArrayTensor(weight), Role.LINEAR), vector(ops, bias))
    expected = number * (a @ weight.T.astype(np.float64) + bias)
    close(product * number, expected)
    residual = rounded(ops, random(3, 5, seed=3))
    close(ops.from_numpy(residual) + product * number, residual + expected)
    close(ops.activation(product * number, "relu"), np.maximum(expected, 0))


WRONG_SHAPES = {
    "columns that the weight does not have": lambda ops, x: ops.layer_norm(x, vector(ops, [1.0] * 5), None, 1e-5),
    "a norm's weight of one value": lambda ops, x: ops.layer_norm(x, vector(ops, [1.0]), None, 1e-5),
    "a norm's bias of one value": lambda ops, x: ops.layer_norm(x, vector(ops, [1.0] * 12), vector(ops, [1.0]), 1e-5),
    "groups of channels that do not divide": lambda ops, x: ops.rms_norm(x, vector(ops, [1.0] * 5), 1e-5),
    "a group wider than the row": lambda ops, x: ops.rms_norm(x, vector(ops, [1.0] * 24), 1e-5),
    "no parts": lambda ops, x: ops.split(x, 0),
    "a negative number of parts": lambda ops, x: ops.split(x, -3),
    "no sizes": lambda ops, x: ops.split(x, []),
    "parts that do not divide": lambda ops, x: ops.split(x, 5),
    "sizes that add up to less": lambda ops, x: ops.split(x, [4, 4]),
    "sizes that add up to more": lambda ops, x: ops.split(x, [8, 8]),
    "a size of 0": lambda ops, x: ops.split(x, [0, 12]),
    "a negative size": lambda ops, x: ops.split(x, [-4, 16]),
    "groups that do not divide": lambda ops, x: ops.split(x, 1, groups=5),
    "no groups": lambda ops, x: ops.split(x, 3, groups=0),
    "negative groups": lambda ops, x: ops.split(x, 3, groups=-2),
    "parts that do not divide a group": lambda ops, x: ops.split(x, 4, groups=2),
    "more angles than channels": lambda ops, x: ops.rotary(x, ops.from_numpy(random(3, 8)), 2),
    "an odd number of angles": lambda ops, x: ops.rotary(x, ops.from_numpy(random(3, 3)), 2),
    "angles of one row": lambda ops, x: ops.rotary(x, ops.from_numpy(random(1, 4)), 2),
    "heads that do not divide": lambda ops, x: ops.rotary(x, ops.from_numpy(random(3, 2)), 5),
    "no heads": lambda ops, x: ops.rotary(x, ops.from_numpy(random(3, 2)), 0),
}


@pytest.mark.parametrize("call", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_mismatched_shapes_are_refused(ops, call):
    with pytest.raises(ValueError, match=r"columns|differ in|sizes|evenly"):
        call(ops, ops.from_numpy(random(3, 12)))


WRONG_NUMBERS = {
    "an id beyond the table": (lambda ops, x, table: ops.embedding(ids(10), table), "beyond the table's 10 rows"),
    "a negative id": (lambda ops, x, table: ops.embedding(ids(-1), table), "beyond the table's 10 rows"),
    "an id beyond the table after its first row": (
        lambda ops, x, table: ops.embedding(ids(8), table, 2),
        "beyond the table's 8 rows from row 2",
    ),
    "a first row beyond the table": (lambda ops, x, table: ops.embedding(ids(0), table, 11), "first_row is 11"),
    "a negative first row": (lambda ops, x, table: ops.embedding(ids(3), table, -1), "first_row is -1"),
    "a row beyond the array": (lambda ops, x, table: ops.take(x, ids(3)), "an array of 3 rows"),
    "a negative row": (lambda ops, x, table: ops.take(x, ids(-1)), "an array of 3 rows"),
    "a row to unfold beyond the array": (lambda ops, x, table: ops.unfold(x, ids(3)[None]), "an array of 3 rows"),
    "a row to unfold before the padding": (lambda ops, x, table: ops.unfold(x, ids(-2)[None]), "an array of 3 rows"),
    "a negative position": (lambda ops, x, table: ops.angles(ids(-1), constant(ops, [1.0])), "negative"),
    "an unknown activation": (lambda ops, x, table: ops.activation(x, "gelu"), "no such activation: gelu"),
    "a weight of another width": (lambda ops, x, table: ops.linear(x, ops.tie(table), None), "x has 12 columns"),
    "a bias of one value": (
        lambda ops, x, table: ops.linear(ops.from_numpy(random(3, 4)), ops.tie(table), vector(ops, [1.0])),
        "bias does not have 10 values",
    ),
}


def ids(*numbers):
    return np.array(numbers, np.int32)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(("call", "problem"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_out_of_range_numbers_are_refused(device, call, problem):
    ops = open_backend(device, "f32")
    with pytest.raises(ValueError, match=problem):
        call(ops, ops.from_numpy(random(3, 12)), ops.load_weight(ArrayTensor(random(10, 4)), Role.TABLE))
