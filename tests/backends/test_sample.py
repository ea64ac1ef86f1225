"""The choice of tokens on every device, against its definition in NumPy: rows together, each by its own draw."""

import numpy as np
import pytest

from rushlight.backends.protocol import LogitAdjustments, SamplingRow
from rushlight.backends.reference import probabilities

SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"temperature": 1e-9},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_k": 10**9},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.8, "min_p": 0.01},
]


def logits_of(ops, n, v, seed=0):
    """Logits on the device, and what they are there."""
    x = ops.from_numpy(3 * np.random.default_rng(seed).standard_normal((n, v)).astype(np.float32))
    return x, np.array(ops.to_numpy(x))


def is_drawn_rightly(row, draw, token):
    """Whether a token stands at the draw's share; at the border of two, either does: exponentials are rounded."""
    if draw.temperature == 0:
        return token == row.argmax()
    reached = np.cumsum(probabilities(row, draw.temperature, draw.top_k, draw.top_p, draw.min_p))
    low, high = (reached[token - 1] if token else 0) / reached[-1], reached[token] / reached[-1]
    return low - 2e-6 <= draw.uniform <= high + 2e-6 and low < high


@pytest.mark.parametrize("v", [1, 7, 32, 33, 1000])
def test_each_row_is_chosen_by_its_own_draw(ops, v):
    shares = np.random.default_rng(1).random(3)
    draws = [SamplingRow(**settings, uniform=share) for settings in SETTINGS for share in shares]
    x, rows = logits_of(ops, len(draws), v)
    chosen = ops.sample(x, draws)
    assert all(type(token) is int for token in chosen)
    for row, draw, token in zip(rows, draws, chosen, strict=True):
        assert is_drawn_rightly(row, draw, token), draw


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_row_is_chosen_alike_alone_and_beside_others(ops, settings):
    draws = [SamplingRow(**settings, uniform=share) for share in np.random.default_rng(2).random(17)]
    x, _ = logits_of(ops, len(draws), 300)
    together = ops.sample(x, draws)
    mixed = ops.sample(x, [draw if i % 3 else SamplingRow(1.0, 5, 0.5, 0.1, 0.5) for i, draw in enumerate(draws)])
    for i, draw in enumerate(draws):
        assert ops.sample(ops.take(x, np.array([i], np.int32)), [draw]) == [together[i]]
        assert not i % 3 or mixed[i] == together[i]


def test_of_equals_the_first_is_the_likeliest(ops):
    rows = np.array([[0, 5, 5, 1], [7, 7, 7, 7], [0, 0, 0, 1]], np.float32)
    assert ops.sample(ops.from_numpy(rows), [SamplingRow()] * 3) == [1, 0, 3]
    wide = np.zeros((1, 100), np.float32)
    wide[0, [70, 90]] = 1
    assert ops.sample(ops.from_numpy(wide), [SamplingRow()]) == [70]


def all_drawn(ops, row, n=60, **settings):
    """The tokens that can be drawn from a row."""
    shares = np.linspace(0, 0.9999, n)
    x = ops.from_numpy(np.tile(np.array(row, np.float32), (n, 1)))
    return set(ops.sample(x, [SamplingRow(**{"temperature": 1.0} | settings, uniform=share) for share in shares]))


def test_equals_at_the_edge_of_top_k_all_stay(ops):
    assert all_drawn(ops, [0, 5, 5, 5, 1], top_k=2) == {1, 2, 3}


def test_of_equals_at_the_edge_of_top_p_the_first_stay(ops):
    row = np.zeros(100)
    row[::2] = 1.0
    n_kept = np.count_nonzero(probabilities(row, 1.0, 0, 0.4, 0.0))
    assert all_drawn(ops, row, 400, top_p=0.4) == set(range(0, 2 * n_kept, 2))


def test_what_is_impossible_is_not_drawn(ops):
    row = np.full(300, -np.inf)
    row[[5, 290]] = 3.0
    for settings in ({}, {"top_k": 100}, {"top_p": 0.9999}, {"top_k": 100, "top_p": 0.9999}):
        assert all_drawn(ops, row, **settings) == {5, 290}


def test_the_ends_of_the_range(ops):
    rows = ops.from_numpy(np.array([[-np.inf, 2, 3, -np.inf]] * 2, np.float32))
    assert ops.sample(rows, [SamplingRow(1.0, uniform=0.0), SamplingRow(1.0, uniform=np.nextafter(1, 0))]) == [1, 2]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "uniform": 0.3}, {"temperature": 1.0, "top_p": 0.9}])
@pytest.mark.parametrize("bad", [[1.0, np.nan, 2.0], [np.nan, 1.0, 2.0], [1.0, np.inf, 2.0], [-np.inf] * 3])
def test_without_a_finite_maximum_there_is_no_token_in_that_row_alone(ops, bad, settings):
    for width in (3, 40, 64):
        rows = np.tile(np.array([[1.0, 9.0, 2.0], bad, [9.0, 1.0, -np.inf]], np.float32), (1, 22))[:, :width]
        draws = [SamplingRow(), SamplingRow(**settings), SamplingRow()]
        assert ops.sample(ops.from_numpy(rows), draws) == [1, -1, 0]


def test_changes_come_before_all_else(ops):
    x, rows = logits_of(ops, 5, 50)
    ids = np.array([3, 49, 0, 17], np.int32)
    factors, offsets = np.array([1.3, 1.0, 2.0, 1.3]), np.array([-0.5, 4.0, 0.0, -1e308])
    changes = LogitAdjustments(ids, factors, offsets)
    draws = [
        SamplingRow(),
        SamplingRow(adjustments=changes),
        SamplingRow(1.0, 10, uniform=0.4, adjustments=changes),
        SamplingRow(1.0, uniform=0.7),
        SamplingRow(1.0, top_p=0.9, uniform=0.1, adjustments=LogitAdjustments(ids[:1], factors[:1], offsets[1:2])),
    ]
    expected = rows.copy()
    penal = rows.astype(np.float32)
    for row in (1, 2):
        values = penal[row, ids]
        changed = np.where(values > 0, values / factors.astype(np.float32), values * factors.astype(np.float32))
        expected[row, ids] = np.maximum(changed + offsets, -1e30)
    expected[4, 3] = (penal[4, 3] / 1.3 if penal[4, 3] > 0 else penal[4, 3] * 1.3) + 4.0
    chosen = ops.sample(x, draws)
    for row, draw, token in zip(expected, draws, chosen, strict=True):
        assert is_drawn_rightly(row, draw, token)
    assert np.array_equal(ops.to_numpy(x), rows)  # the logits stay as they are


def test_a_penalty_weakens_a_negative_logit_too(ops):
    rows = ops.from_numpy(np.array([[-1.0, -1.125], [1.125, 1.0]], np.float32))
    changes = LogitAdjustments(np.array([0], np.int32), np.array([1.25]), np.array([0.0]))
    assert ops.sample(rows, [SamplingRow(adjustments=changes)] * 2) == [1, 1]


def test_only_what_is_allowed_is_chosen(ops):
    x, rows = logits_of(ops, 4, 50)
    even, few = np.arange(50) % 2 == 0, np.arange(50) < 3
    for masks in ([even] * 4, [even, few, None, few], [None, None, None, even]):
        for settings in ({}, {"temperature": 2.0, "uniform": 0.6}):
            draws = [SamplingRow(**settings, allowed=mask) for mask in masks]
            for row, draw, token in zip(rows, draws, ops.sample(x, draws), strict=True):
                masked = row if draw.allowed is None else np.where(draw.allowed, row, -np.inf)
                assert is_drawn_rightly(masked, draw, token)
    assert np.array_equal(ops.to_numpy(x), rows)


def test_what_is_not_allowed_may_be_anything(ops):
    rows = ops.from_numpy(np.array([[np.nan, 1.0, np.inf, 2.0]] * 2, np.float32))
    only = np.array([False, True, False, True])
    assert ops.sample(rows, [SamplingRow(allowed=only), SamplingRow(1.0, uniform=0.0, allowed=only)]) == [3, 1]
    assert ops.sample(rows, [SamplingRow(allowed=~only), SamplingRow(allowed=np.zeros(4, np.bool_))]) == [-1, -1]
