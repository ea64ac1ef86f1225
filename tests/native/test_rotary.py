"""Rotary position embedding: angles to the last bit, and rotated heads against float64."""

import numpy as np
import pytest
from native_helpers import random

LLAMA = (1 / 500_000.0 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)


def expected_angles(positions, frequencies, scale=1.0):
    """Cosines, then sines, of the rounded product, correctly rounded, times scale."""
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    rounded = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return rounded * np.float32(scale)


@pytest.mark.parametrize("scale", [1.0, 1.2689])
@pytest.mark.parametrize("frequencies", [LLAMA, np.array([1.0], np.float32), np.array([0.7, 1e-8, 3.0], np.float32)])
def test_angles_are_correctly_rounded(device, frequencies, scale):
    positions = np.array([0, 1, 2, 63, 64, 511, 8_000, 131_071, 1_000_003, 2**24 + 1, 2**31 - 65], np.int32)
    angles = device.angles(positions, device.vector(frequencies), scale)
    assert angles.shape == (len(positions), 2 * len(frequencies))
    assert np.array_equal(np.asarray(angles), expected_angles(positions, frequencies, scale))


def test_angles_near_multiples_of_a_quarter_turn_are_correctly_rounded(device):
    """The reduced angle cancels almost completely there, so that all parts of π/2 matter."""
    near = (np.arange(1, 2**22, 997) * (np.pi / 2)).astype(np.float32)
    frequencies = np.concatenate([np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(np.inf))])
    one = np.array([1], np.int32)
    found = np.asarray(device.angles(one, device.vector(frequencies)))
    assert np.array_equal(found, expected_angles(one, frequencies))


def test_angles_of_infinite_frequencies_are_nan(device):
    found = np.asarray(device.angles(np.array([1], np.int32), device.vector(np.array([np.inf, 1e30], np.float32))))
    assert np.isnan(found[0, [0, 2]]).all()
    assert (np.abs(found[0, [1, 3]]) <= 1).all()


def test_a_negative_position_is_refused(device):
    with pytest.raises(ValueError, match="position -1 is negative"):
        device.angles(np.array([0, -1], np.int32), device.vector(LLAMA))


def textbook_rotary(x, angles, n_head, interleaved):
    n, r = angles.shape
    heads = x.astype(np.float64).reshape(n, n_head, -1)
    cos, sin = (part[:, None, :].astype(np.float64) for part in np.split(angles, 2, axis=1))
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    out = heads.copy()
    a, b = heads[..., first], heads[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out.reshape(n, -1)


HEADS = [(1, 2, 2), (3, 5, 4), (2, 8, 8), (3, 10, 6), (2, 20, 10), (2, 64, 64), (4, 80, 32), (1, 96, 96), (2, 256, 64)]
"""n_head, head_dim, n_rotated."""


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("n_head", "head_dim", "n_rotated"), HEADS)
def test_rotary_equals_the_formula(device, n_head, head_dim, n_rotated, interleaved):
    x = random(7, n_head * head_dim)
    frequencies = np.linspace(0.01, 1, n_rotated // 2, dtype=np.float32)
    angles = device.angles(np.arange(7, dtype=np.int32) * 11, device.vector(frequencies))
    result = np.asarray(device.rotary(device.array(x), angles, n_head, interleaved=interleaved))
    expected = textbook_rotary(x, np.asarray(angles), n_head, interleaved)
    assert np.abs(result - expected).max() <= 3e-7 * np.abs(x).max()
    rest = result.reshape(7, n_head, head_dim)[..., n_rotated:]
    assert np.array_equal(rest, x.reshape(7, n_head, head_dim)[..., n_rotated:])
    each = [
        np.asarray(
            device.rotary(
                device.array(x[i : i + 1]),
                device.take(angles, np.array([i], np.int32)),
                n_head,
                interleaved=interleaved,
            )
        )
        for i in range(7)
    ]
    assert np.array_equal(np.concatenate(each), result)


def test_rotary_of_a_strided_view(device):
    """Queries are usually a view whose row stride exceeds the row length."""
    x = random(5, 48)
    angles = device.angles(np.arange(5, dtype=np.int32), device.vector(LLAMA[:8]))
    part = device.split(device.array(x), [32, 16])[1]
    expected = device.rotary(device.array(np.ascontiguousarray(x[:, 32:])), angles, 1)
    assert np.array_equal(np.asarray(device.rotary(part, angles, 1)), np.asarray(expected))


def test_rotary_refuses_mismatched_arguments(device):
    x = device.array(random(3, 24))
    three = np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="24 columns, which do not split into 5 equal heads"):
        device.rotary(x, device.angles(three, device.vector(LLAMA[:2])), 5)
    with pytest.raises(ValueError, match="into 0 equal heads"):
        device.rotary(x, device.angles(three, device.vector(LLAMA[:2])), 0)
    with pytest.raises(ValueError, match=r"angles have 14 columns: expected an even number up to the head's 12"):
        device.rotary(x, device.angles(three, device.vector(LLAMA[:7])), 2)
    with pytest.raises(ValueError, match="angles have 3 columns: expected an even number"):
        device.rotary(x, device.array(random(3, 3)), 2)
    with pytest.raises(ValueError, match="differ in rows"):
        device.rotary(x, device.angles(three[:2], device.vector(LLAMA[:2])), 2)
