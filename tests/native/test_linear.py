"""Matrix products over packed panels against float64, at every size where a vector, a tile or a panel ends."""

import numpy as np
import pytest
from native_helpers import FORMATS, place, random, rounded_to_bf16, unpacked

from rushlight.backends import _native

ROUNDING = {
    # Of |x| · |w|, for results against float64: a float's rounding, one for each addition at worst.
    "f32": 4e-7,
    "f16": 4e-7,
    "bf16": 4e-7,
    "int8": 4e-7,
    "int6": 8e-7,
    "int4": 8e-7,
}
STORED = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "int8": 0.6 / 127, "int6": 0.65 / 63, "int4": 0.65 / 15}
"""The largest rounding error of a weight, relative to the largest magnitude in its group of 32."""


def quantized(x, most):
    """Returns activations quantised as in the integer formats: groups of 32 integers up to `most`, times a scale."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))
    padded = padded.reshape(len(x), padded.shape[1] // 32, 32)
    greatest = np.abs(padded).max(-1, keepdims=True)
    q = np.rint(padded * (np.float32(most) / np.where(greatest > 0, greatest, 1)))
    return (q.astype(np.float64) * (greatest / np.float32(most))).reshape(len(x), padded.shape[1] * 32)[:, : x.shape[1]]


def seen(x, weights, isa):
    """Returns the activations as rounded by a product with these weights."""
    if weights.startswith("int"):
        return quantized(x, 64 if weights == "int8" else 127)
    return rounded_to_bf16(x) if weights == "bf16" and isa in ("avx512vnni", "amx") else x


def test_every_number_of_inputs(device, isa, weights):
    for n_in in [*range(1, 35), 63, 64, 65, 127, 129, 515]:
        check(device, isa, weights, rows=3, n_in=n_in, n_out=33)


def test_every_number_of_outputs(device, isa, weights):
    for n_out in [*range(1, 35), 63, 64, 65, 97]:
        check(device, isa, weights, rows=2, n_in=37, n_out=n_out)


def test_every_number_of_rows(device, isa, weights):
    for rows in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 95, 96, 97, 200]:
        check(device, isa, weights, rows=rows, n_in=70, n_out=40)


@pytest.mark.parametrize("n_in", [191, 193, 385, 700, 1100])
def test_a_row_is_bit_identical_in_any_batch(device, weights, n_in):
    """Inputs cut into blocks, panel by panel and, of 97 rows of 700 and more, block by block."""
    weight, bias, x = place(device, random(n_in, 100), weights), device.vector(random(100, seed=2)), random(97, n_in)
    solo = [np.asarray(device.linear(device.array(x[i : i + 1]), weight, bias))[0] for i in range(0, 97, 12)]
    for n_rows in (13, 97):
        together = np.asarray(device.linear(device.array(x[:n_rows]), weight, bias))
        assert np.array_equal(together[::12], solo[: len(together[::12])])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weights_and_activations_do_not_overflow(device, isa, weights, sign):
    check(device, isa, weights, rows=7, n_in=96, n_out=33, of=lambda *shape, seed=0: np.full(shape, sign, np.float32))


def check(device, isa, weights, rows, n_in, n_out, of=random):
    matrix, x, bias = of(n_in, n_out), of(rows, n_in, seed=1), of(n_out, seed=2)
    weight = place(device, matrix, weights)
    kept, activations = unpacked(device, weight), seen(x, weights, isa)
    scale = np.abs(activations) @ np.abs(kept) + np.abs(bias) + 1e-30

    result = np.asarray(device.linear(device.array(x), weight, None))
    assert (result.shape, result.dtype) == ((rows, n_out), np.float32)
    assert (np.abs(result - activations @ kept) <= ROUNDING[weights] * scale).all()
    biased = np.asarray(device.linear(device.array(x), weight, device.vector(bias)))
    assert np.array_equal(biased, result + bias)


@pytest.mark.parametrize("offset", [1, 3, 5, 31])
def test_activations_at_odd_addresses(device, isa, weights, offset):
    """Columns split off a wider array: rows have gaps between them and unaligned addresses."""
    wide = random(5, offset * 3)
    parts = device.split(device.array(wide), 3)
    weight = place(device, random(offset, 40), weights)
    for part, columns in zip(parts, np.split(wide, 3, axis=1), strict=True):
        solo = device.linear(device.array(np.ascontiguousarray(columns)), weight, None)
        assert np.array_equal(np.asarray(device.linear(part, weight, None)), np.asarray(solo))


@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (70, 40)])
def test_weight_rounding_is_within_the_precision_of_the_format(device, weights, shape):
    matrix = random(*shape)
    groups = np.pad(matrix, ((0, -shape[0] % 32), (0, 0))).reshape(-1, 32, shape[1])
    greatest = np.abs(groups).max(1)
    if weights in {"int6", "int4"}:
        greatest = np.maximum(groups.max(1), 0) - np.minimum(groups.min(1), 0)
    limit = STORED[weights] * np.repeat(greatest, 32, axis=0)[: shape[0]]
    if weights in {"int6", "int4"}:  # the group's squares decide, so the farthest value may be farther off
        limit = limit * 3
    assert (np.abs(unpacked(device, place(device, matrix, weights)) - matrix) <= limit + 1e-12).all()


@pytest.mark.parametrize(("dtype", "numpy"), [("F32", np.float32), ("F16", np.float16), ("F64", np.float64)])
def test_bytes_of_every_dtype_are_read(device, dtype, numpy):
    matrix = random(40, 35).astype(numpy)
    assert np.array_equal(unpacked(device, place(device, matrix, "f32", dtype=dtype)), matrix.astype(np.float32))


def test_bf16_weights_are_stored_exactly(device):
    bits = (random(40, 35).view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    for weights in ("f32", "bf16"):
        assert np.array_equal(unpacked(device, place(device, bits, weights, dtype="BF16")), values)


def test_every_half_is_stored_exactly(device):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 2 * 31)
    assert np.array_equal(unpacked(device, place(device, halves, "f16", dtype="F16")), halves)


def test_floats_are_rounded_to_the_nearest_half(device):
    values = np.concatenate([random(4000) * 10.0**e for e in range(-8, 4)]).astype(np.float32).reshape(-1, 40)
    kept = unpacked(device, place(device, values, "f16"))
    assert np.array_equal(kept, values.astype(np.float16))


def test_a_weight_packed_in_pieces_is_the_same(device, weights):
    matrix, x = random(100, 50), random(2, 100, seed=1)
    pieces = device.weight(weights, 100, 50)
    for first in (0, 32, 96):
        rows = matrix[first : {0: 32, 32: 96, 96: 100}[first]]
        assert device.pack(pieces, rows.reshape(-1).view(np.uint8), "F32", 50, True, first)
    entire = place(device, matrix, weights)
    results = [np.asarray(device.linear(device.array(x), weight, None)) for weight in (pieces, entire)]
    assert np.array_equal(*results)


def test_rows_of_outputs_pack_as_the_transposed_matrix(device, weights):
    matrix, x = random(70, 45), random(2, 70, seed=1)
    turned = device.weight(weights, 70, 45)
    assert device.pack(turned, np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8), "F32", 70, False, 0)
    results = [np.asarray(device.linear(device.array(x), w, None)) for w in (turned, place(device, matrix, weights))]
    assert np.array_equal(*results)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_a_non_finite_weight_is_reported(device, weights, garbage):
    matrix = random(40, 40)
    matrix[33, 39] = garbage
    weight = device.weight(weights, 40, 40)
    assert not device.pack(weight, matrix.reshape(-1).view(np.uint8), "F32", 40, True, 0)


@pytest.mark.parametrize(
    ("stored", "value"), [("f16", 65520.0), ("bf16", 3.4e38), ("int8", 1e7), ("int6", 2e4), ("int4", 4e3)]
)
def test_a_weight_beyond_the_range_of_its_format_is_reported(device, stored, value):
    matrix = random(40, 40)
    matrix[1, 2] = value
    weight = device.weight(stored, 40, 40)
    assert not device.pack(weight, matrix.reshape(-1).view(np.uint8), "F32", 40, True, 0)


def test_a_non_finite_row_does_not_affect_others(device, weights):
    x = random(4, 40)
    x[1, 3], x[2, 39] = np.nan, np.inf
    weight = place(device, random(40, 33), weights)
    result = np.asarray(device.linear(device.array(x), weight, None))
    assert np.isfinite(result[[0, 3]]).all()
    assert not np.isfinite(result[1]).any()
    assert not np.isfinite(result[2]).any()


def test_reading_touches_every_byte(device, weights):
    matrix = random(40, 70)
    before = device.read(place(device, matrix, weights))
    matrix[39, 69] += 1
    assert device.read(place(device, matrix, weights)) != before


def test_the_peak_counts_the_operations_of_every_part(device, weights):
    one = device.peak(weights, 1)
    assert one >= 2 * 4096 * 12 * 4  # steps, sums and the fewest lanes
    assert device.peak(weights, 7) == 7 * one
    assert device.peak(weights, 0) == 0
    assert one % device.peak("f32", 1) == 0


def test_mismatched_shapes_are_refused(device):
    weight = place(device, random(8, 5), "f32")
    with pytest.raises(ValueError, match="8 inputs"):
        device.linear(device.array(random(1, 9)), weight, None)
    with pytest.raises(ValueError, match="bias"):
        device.linear(device.array(random(1, 8)), weight, device.vector(random(6)))
    with pytest.raises(ValueError, match="beyond the table"):
        device.embedding(np.array([5], np.int32), weight)
    with pytest.raises(ValueError, match="beyond the table"):
        device.embedding(np.array([-1], np.int32), weight)
    with pytest.raises(ValueError, match="no such format"):
        device.weight("int3", 8, 5)


def test_every_format_is_tested():
    assert _native.Device(1, "portable").weight(FORMATS[-1], 32, 32).nbytes == 576
