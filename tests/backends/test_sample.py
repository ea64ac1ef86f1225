"""Sampling on every device against its definition in NumPy: rows in one batch, each with its own settings."""

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
    """Returns logits on the device, and their values as rounded by it."""
    x = ops.from_numpy(3 * np.random.default_rng(seed).standard_normal((n, v)).astype(np.float32))
    return x, np.array(ops.to_numpy(x))


def is_sampled_correctly(logits_row, row, token):
    """Whether the row's uniform number selects a token; at a border either may be, as exponentials are rounded."""
    if row.temperature == 0:
        return token == logits_row.argmax()
    reached = np.cumsum(probabilities(logits_row, row.temperature, row.top_k, row.top_p, row.min_p))
    low, high = (reached[token - 1] if token else 0) / reached[-1], reached[token] / reached[-1]
    return low - 2e-6 <= row.uniform <= high + 2e-6 and low < high


@pytest.mark.parametrize("v", [1, 7, 32, 33, 1000])
def test_each_row_of_logits_has_its_own_settings(ops, v):
    uniforms = np.random.default_rng(1).random(3)
    rows = [SamplingRow(**settings, uniform=uniform) for settings in SETTINGS for uniform in uniforms]
    x, logits = logits_of(ops, len(rows), v)
    sampled = ops.sample(x, rows)
    assert all(type(token) is int for token in sampled)
    for logits_row, row, token in zip(logits, rows, sampled, strict=True):
        assert is_sampled_correctly(logits_row, row, token), row


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_row_is_sampled_identically_solo_and_batched(ops, settings):
    rows = [SamplingRow(**settings, uniform=uniform) for uniform in np.random.default_rng(2).random(17)]
    x, _ = logits_of(ops, len(rows), 300)
    batched = ops.sample(x, rows)
    mixed = ops.sample(x, [row if i % 3 else SamplingRow(1.0, 5, 0.5, 0.1, 0.5) for i, row in enumerate(rows)])
    for i, row in enumerate(rows):
        assert ops.sample(ops.take(x, np.array([i], np.int32)), [row]) == [batched[i]]
        assert not i % 3 or mixed[i] == batched[i]


def test_rows_in_parts_are_sampled_as_all_together(ops, monkeypatch):
    rows = [SamplingRow(i % 3, 20 * (i % 2), 0.9, uniform=i / 17) for i in range(17)]
    x, _ = logits_of(ops, len(rows), 300)
    together = ops.sample(x, rows)
    monkeypatch.setattr("rushlight.backends.device_step.SAMPLED_LOGITS", 2 * 300)
    assert ops.sample(x, rows) == together


def test_greedy_ties_go_to_the_first_token(ops):
    logits = np.array([[0, 5, 5, 1], [7, 7, 7, 7], [0, 0, 0, 1]], np.float32)
    assert ops.sample(ops.from_numpy(logits), [SamplingRow()] * 3) == [1, 0, 3]
    wide = np.zeros((1, 100), np.float32)
    wide[0, [70, 90]] = 1
    assert ops.sample(ops.from_numpy(wide), [SamplingRow()]) == [70]


def all_sampled(ops, logits_row, n=60, **settings):
    """Returns the tokens that can be sampled from a row of logits."""
    uniforms = np.linspace(0, 0.9999, n)
    x = ops.from_numpy(np.tile(np.array(logits_row, np.float32), (n, 1)))
    return set(ops.sample(x, [SamplingRow(**{"temperature": 1.0} | settings, uniform=uniform) for uniform in uniforms]))


def test_ties_at_the_edge_of_top_k_are_all_kept(ops):
    assert all_sampled(ops, [0, 5, 5, 5, 1], top_k=2) == {1, 2, 3}


def test_ties_at_the_edge_of_top_p_keep_the_first(ops):
    logits_row = np.zeros(100)
    logits_row[::2] = 1.0
    n_kept = np.count_nonzero(probabilities(logits_row, 1.0, 0, 0.4, 0.0))
    assert all_sampled(ops, logits_row, 400, top_p=0.4) == set(range(0, 2 * n_kept, 2))


def test_a_token_of_probability_zero_is_never_sampled(ops):
    logits_row = np.full(300, -np.inf)
    logits_row[[5, 290]] = 3.0
    for settings in ({}, {"top_k": 100}, {"top_p": 0.9999}, {"top_k": 100, "top_p": 0.9999}):
        assert all_sampled(ops, logits_row, **settings) == {5, 290}


def test_uniform_numbers_at_the_ends_of_their_range(ops):
    logits = ops.from_numpy(np.array([[-np.inf, 2, 3, -np.inf]] * 2, np.float32))
    assert ops.sample(logits, [SamplingRow(1.0, uniform=0.0), SamplingRow(1.0, uniform=np.nextafter(1, 0))]) == [1, 2]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "uniform": 0.3}, {"temperature": 1.0, "top_p": 0.9}])
@pytest.mark.parametrize("bad", [[1.0, np.nan, 2.0], [np.nan, 1.0, 2.0], [1.0, np.inf, 2.0], [-np.inf] * 3])
def test_only_a_row_without_a_finite_maximum_has_no_token(ops, bad, settings):
    for width in (3, 40, 64):
        logits = np.tile(np.array([[1.0, 9.0, 2.0], bad, [9.0, 1.0, -np.inf]], np.float32), (1, 22))[:, :width]
        rows = [SamplingRow(), SamplingRow(**settings), SamplingRow()]
        assert ops.sample(ops.from_numpy(logits), rows) == [1, -1, 0]


def test_adjustments_are_applied_before_sampling(ops):
    x, logits = logits_of(ops, 5, 50)
    ids = np.array([3, 49, 0, 17], np.int32)
    factors, offsets = np.array([1.3, 1.0, 2.0, 1.3]), np.array([-0.5, 4.0, 0.0, -1e308])
    adjustments = LogitAdjustments(ids, factors, offsets)
    rows = [
        SamplingRow(),
        SamplingRow(adjustments=adjustments),
        SamplingRow(1.0, 10, uniform=0.4, adjustments=adjustments),
        SamplingRow(1.0, uniform=0.7),
        SamplingRow(1.0, top_p=0.9, uniform=0.1, adjustments=LogitAdjustments(ids[:1], factors[:1], offsets[1:2])),
    ]
    expected = logits.copy()
    penal = logits.astype(np.float32)
    for logits_row in (1, 2):
        values = penal[logits_row, ids]
        changed = np.where(values > 0, values / factors.astype(np.float32), values * factors.astype(np.float32))
        expected[logits_row, ids] = np.maximum(changed + offsets, -1e30)
    expected[4, 3] = (penal[4, 3] / 1.3 if penal[4, 3] > 0 else penal[4, 3] * 1.3) + 4.0
    sampled = ops.sample(x, rows)
    for logits_row, row, token in zip(expected, rows, sampled, strict=True):
        assert is_sampled_correctly(logits_row, row, token)
    assert np.array_equal(ops.to_numpy(x), logits)  # the logits stay unchanged


def test_a_penalty_also_lowers_a_negative_logit(ops):
    logits = ops.from_numpy(np.array([[-1.0, -1.125], [1.125, 1.0]], np.float32))
    adjustments = LogitAdjustments(np.array([0], np.int32), np.array([1.25]), np.array([0.0]))
    assert ops.sample(logits, [SamplingRow(adjustments=adjustments)] * 2) == [1, 1]


def test_only_allowed_tokens_are_sampled(ops):
    x, logits = logits_of(ops, 4, 50)
    even, few = np.arange(50) % 2 == 0, np.arange(50) < 3
    for masks in ([even] * 4, [even, few, None, few], [None, None, None, even]):
        for settings in ({}, {"temperature": 2.0, "uniform": 0.6}):
            rows = [SamplingRow(**settings, allowed=mask) for mask in masks]
            for logits_row, row, token in zip(logits, rows, ops.sample(x, rows), strict=True):
                masked = logits_row if row.allowed is None else np.where(row.allowed, logits_row, -np.inf)
                assert is_sampled_correctly(masked, row, token)
    assert np.array_equal(ops.to_numpy(x), logits)


def test_logits_of_disallowed_tokens_may_be_anything(ops):
    logits = ops.from_numpy(np.array([[np.nan, 1.0, np.inf, 2.0]] * 2, np.float32))
    only = np.array([False, True, False, True])
    assert ops.sample(logits, [SamplingRow(allowed=only), SamplingRow(1.0, uniform=0.0, allowed=only)]) == [3, 1]
    assert ops.sample(logits, [SamplingRow(allowed=~only), SamplingRow(allowed=np.zeros(4, np.bool_))]) == [-1, -1]
