"""The bytes of int6 and int4 tiles, against the layout in native/panel.h and the search of native/pack.h in NumPy."""

import numpy as np
import pytest
from native_helpers import place, random, unpacked

from rushlight.backends import _native

F = np.float32
BITS = {"int6": 6, "int4": 4}
SCALES = {6: 6, 4: 10}
SLACK = {6: F(1.04), 4: F(1.06)}
LEAST = (127 - 24) << 23


@pytest.fixture(params=BITS)
def stored(request):
    return request.param


def affine(groups, bits):
    """The scales and the zero points of groups."""
    groups = groups.astype(np.uint32)
    return ((groups << 12) + LEAST).view(F), (groups & 127).astype(F) * F(2.0**bits / 128)


def decoded(raw, bits, n_in, n_out):
    """Returns the values (n_in, n_out) of a weight's bytes."""
    n_panels, n_tiles = -(-n_out // 32), -(-n_in // 32)
    tiles = np.frombuffer(raw, np.uint8).reshape(n_panels, n_tiles, -1)
    lines = tiles[:, :, : 128 * bits].reshape(n_panels, n_tiles, bits, 32, 4)  # line, output, input of a quad
    if bits == 4:
        quads = np.stack([lines & 15, lines >> 4], 3)
    else:
        halves = lines.reshape(n_panels, n_tiles, 2, 3, 32, 4)
        fourth = sum(halves[:, :, :, i] >> 6 << (2 * i) for i in range(3))
        quads = np.concatenate([halves & 63, fourth[:, :, :, None]], 3)
    q = quads.reshape(n_panels, n_tiles, 8, 32, 4).swapaxes(3, 4).reshape(n_panels, n_tiles, 32, 32)
    groups = tiles[:, :, 128 * bits :].copy().view("<u2").reshape(n_panels, n_tiles, 1, 32)
    scale, zero = affine(groups, bits)
    values = scale * (q.astype(F) - zero)
    return values.transpose(1, 2, 0, 3).reshape(n_tiles * 32, n_panels * 32)[:n_in, :n_out]


def best_groups(columns, bits):
    """Returns the group of each of the columns, (32, N) float32: the least squared error of those that are tried."""
    top, step = F(2**bits - 1), F(2.0**bits / 128)
    least, most = np.minimum(columns.min(0), F(0)), np.maximum(columns.max(0), F(0))
    first = (((most - least) * (SLACK[bits] / top)).view(np.int32) - np.int32(LEAST)) >> 19
    best, best_error = np.zeros(columns.shape[1], np.uint32), np.full(columns.shape[1], np.inf, F)
    for i in range(SCALES[bits]):
        upper = np.maximum(first - i, 0).astype(np.uint32) << 7
        center = top / F(2) - (least + most) * F(0.5) * (F(1) / affine(upper | 64, bits)[0])
        middle = np.rint(np.clip(center * (F(1) / step), F(0), F(127))).astype(np.int32)
        for offset in range(-3, 5):
            groups = upper | np.clip(middle + offset, 0, 127).astype(np.uint32)
            scale, zero = affine(groups, bits)
            error = np.zeros_like(best_error)
            for w in columns:
                scaled = w * (F(1) / scale) + zero
                off = np.rint(np.clip(scaled, F(0), top)) - scaled
                error += off * off
            error *= scale * scale
            better = error < best_error
            best, best_error = np.where(better, groups, best), np.where(better, error, best_error)
    return best


def test_the_bytes_are_those_of_the_layout(device, stored):
    for n_in, n_out in ((1, 1), (31, 33), (70, 40), (96, 32)):
        weight = place(device, random(n_in, n_out), stored)
        raw = weight.tobytes()
        assert len(raw) == weight.nbytes
        assert np.array_equal(decoded(raw, BITS[stored], n_in, n_out), unpacked(device, weight))
        assert np.array_equal(device.unpack(weight).T, unpacked(device, weight))


def test_the_search_finds_the_same_groups_as_numpy(device, stored):
    bits = BITS[stored]
    columns = random(32, 32 * 40) * np.geomspace(1e-9, 300, 32 * 40, dtype=F)
    columns[:, ::7] += 1.5 * np.abs(columns[:, ::7]).max(0)  # of one sign
    columns[:, 1::7] -= 1.5 * np.abs(columns[:, 1::7]).max(0)
    columns[:, 2::50] = 0
    columns[:, 3::50] = columns[0, 3::50]
    tiles = np.frombuffer(place(device, columns, stored).tobytes(), np.uint8).reshape(40, -1)
    found = tiles[:, 128 * bits :].copy().view("<u2").ravel()
    assert np.array_equal(found, best_groups(columns, bits))


@pytest.mark.parametrize(("bits", "limit"), [(6, 0.0182), (4, 0.0709)])
def test_the_error_of_normal_weights(device, bits, limit):
    """The limits are 1 % above the observed errors."""
    matrix = random(1024, 64)
    kept = unpacked(device, place(device, matrix, f"int{bits}"))
    assert np.linalg.norm(kept - matrix) <= limit * np.linalg.norm(matrix)


def test_zeros_are_exact(device, stored):
    assert not unpacked(device, place(device, np.zeros((40, 33), F), stored)).any()


@pytest.mark.parametrize("value", [1e-5, 1e-3, 0.7, 100.0, -1e-5, -0.7, -100.0])
def test_equal_weights_are_near(device, stored, value):
    kept = unpacked(device, place(device, np.full((32, 32), value, F), stored))
    assert (np.abs(kept / value - 1) <= 2.0 ** -(BITS[stored] + 2)).all()


def test_weights_too_small_for_a_scale_become_zero_or_stay_near(device, stored):
    matrix = 1e-8 * random(32, 32)
    assert (np.abs(unpacked(device, place(device, matrix, stored)) - matrix) <= 2.0**-24).all()


@pytest.mark.parametrize("outlier", [10.0, -10.0, 1000.0])
def test_a_group_with_an_outlier_keeps_it(device, stored, outlier):
    matrix = random(64, 32)
    matrix[40] = outlier
    kept = unpacked(device, place(device, matrix, stored))
    assert (np.abs(kept[40] - outlier) <= 0.07 * abs(outlier)).all()
    assert (np.abs(kept[:32] - matrix[:32]) <= 0.3).all()


def test_a_product_with_the_largest_numbers_is_exact(device, stored):
    """All of q, zero points and activations at their limits: the sum within a group of 32 does not round."""
    matrix = np.full((32, 33), 1, F)
    matrix[::2] = -1 if stored == "int4" else 1
    weight = place(device, matrix, stored)
    kept = unpacked(device, weight)
    for x in (np.full((7, 32), 127, F), np.tile(F([127, -127]), (7, 16))):
        found = np.asarray(device.linear(device.array(x), weight, None))
        assert np.array_equal(found, (x.astype(np.float64) @ kept).astype(F))


def test_the_version_of_the_tiles_is_that_of_these_tests():
    """Whoever changes a layout changes the version, for weights that were packed before."""
    assert _native.TILE_VERSION == 1
    sizes = {name: _native.Device(1, "portable").weight(name, 32, 32).nbytes for name in BITS}
    assert sizes == {"int6": 832, "int4": 576}
