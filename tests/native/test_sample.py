"""The native choice of tokens by every instruction set and number of threads, at every length, and what it refuses."""

import numpy as np
import pytest
from native_helpers import _native, random

from rushlight.backends.protocol import LogitAdjustments, SamplingRow
from rushlight.backends.reference import probabilities

SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10**9},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 1.3, "top_k": 500, "top_p": 0.8, "min_p": 0.01},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 7, 31, 32, 33, 1000, 50_257])
def test_the_draw_is_that_of_the_reference(device, settings, vocab_size):
    draw = SamplingRow(**{"temperature": 1.0} | settings)
    logits = 3 * random(vocab_size)
    cumulative = np.cumsum(probabilities(logits, draw.temperature, draw.top_k, draw.top_p, draw.min_p))
    shares = np.random.default_rng(1).random(40)
    rows = device.array(np.tile(logits, (40, 1)))
    for share, token in zip(
        shares, device.sample(rows, [draw._replace(uniform=share) for share in shares]), strict=True
    ):
        low, high = (cumulative[token - 1] if token else 0) / cumulative[-1], cumulative[token] / cumulative[-1]
        # Exactly at the border of two tokens either may come: the exponentials are those of float32.
        assert low - 1e-6 <= share <= high + 1e-6
        assert high > low


def test_the_likeliest_of_any_number_of_logits_wherever_it_stands(device):
    for vocab_size in range(1, 131):
        logits = random(vocab_size, vocab_size, seed=vocab_size)
        np.fill_diagonal(logits, 9)
        assert device.sample(device.array(logits), [SamplingRow()] * vocab_size) == list(range(vocab_size))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_chosen_beside_a_nan_or_an_infinity_wherever_it_stands(device, bad):
    for vocab_size in (1, 31, 32, 33, 70):
        logits = random(vocab_size, vocab_size, seed=vocab_size)
        np.fill_diagonal(logits, bad)
        for draw in (SamplingRow(), SamplingRow(1.0, uniform=0.5)):
            assert device.sample(device.array(logits), [draw] * vocab_size) == [-1] * vocab_size


def test_any_number_of_threads_chooses_the_same(isa):
    logits = 3 * random(33, 50_257)
    changes = LogitAdjustments(np.arange(0, 50_000, 7, dtype=np.int32), np.full(7143, 1.2), np.full(7143, -0.25))
    allowed = np.arange(50_257) % 11 != 0
    kinds = [
        SamplingRow(),
        SamplingRow(1.0, uniform=0.7),
        SamplingRow(0.8, 40, 0.95, 0.02, 0.3, changes),
        SamplingRow(1.0, allowed=allowed),
    ]
    draws = [kinds[i % len(kinds)] for i in range(33)]
    found = []
    for threads in (1, 2, 3):
        device = _native.Device(threads, isa)
        found.append(device.sample(device.array(logits), draws))
    assert found[0] == found[1] == found[2]
    assert found[0] == [device.sample(device.array(logits[i : i + 1]), [draws[i]])[0] for i in range(33)]


def test_what_does_not_fit_is_refused(device):
    x = device.array(random(2, 5))
    ids, ones = np.array([4], np.int32), np.ones(1)
    for draws, problem in (
        ([SamplingRow()], "as many rows as draws"),
        ([SamplingRow(adjustments=LogitAdjustments(ids + 1, ones, ones))] * 2, "beyond the logits"),
        ([SamplingRow(adjustments=LogitAdjustments(-ids, ones, ones))] * 2, "beyond the logits"),
        ([SamplingRow(adjustments=LogitAdjustments(ids, ones, np.ones(2)))] * 2, "differ in length"),
        ([SamplingRow(allowed=np.ones(4, np.bool_))] * 2, "of every token"),
    ):
        with pytest.raises(ValueError, match=problem):
            device.sample(x, draws)
    with pytest.raises(ValueError, match="no logits"):
        device.sample(device.array(random(1, 0)), [SamplingRow()])
    with pytest.raises(RuntimeError, match="bad_cast"):  # converted, it would be gone when it is read
        device.sample(x, [SamplingRow(adjustments=LogitAdjustments(ids.astype(np.int64), ones, ones))] * 2)
