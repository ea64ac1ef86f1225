"""Native sampling, for every instruction set, number of threads and vocabulary size, and invalid arguments."""

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
def test_sampled_tokens_equal_those_of_the_reference(device, settings):
    for vocab_size in [1, 7, 31, 32, 33, 1000, 50_257]:
        row = SamplingRow(**{"temperature": 1.0} | settings)
        logits = 3 * random(vocab_size)
        cumulative = np.cumsum(probabilities(logits, row.temperature, row.top_k, row.top_p, row.min_p))
        uniforms = np.random.default_rng(1).random(40)
        rows = device.array(np.tile(logits, (40, 1)))
        for uniform, token in zip(
            uniforms, device.sample(rows, [row._replace(uniform=uniform) for uniform in uniforms]), strict=True
        ):
            low, high = (cumulative[token - 1] if token else 0) / cumulative[-1], cumulative[token] / cumulative[-1]
            # Exactly at the border of two tokens either may be sampled: exponentials are computed in float32.
            assert low - 1e-6 <= uniform <= high + 1e-6
            assert high > low


def test_greedy_sampling_finds_the_maximum_at_any_index(device):
    for vocab_size in range(1, 131):
        logits = random(vocab_size, vocab_size, seed=vocab_size)
        np.fill_diagonal(logits, 9)
        assert device.sample(device.array(logits), [SamplingRow()] * vocab_size) == list(range(vocab_size))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_token_is_sampled_if_a_logit_is_nan_or_infinite(device, bad):
    for vocab_size in (1, 31, 32, 33, 70):
        logits = random(vocab_size, vocab_size, seed=vocab_size)
        np.fill_diagonal(logits, bad)
        for row in (SamplingRow(), SamplingRow(1.0, uniform=0.5)):
            assert device.sample(device.array(logits), [row] * vocab_size) == [-1] * vocab_size


def test_any_number_of_threads_samples_the_same_tokens(isa):
    logits = 3 * random(33, 50_257)
    adjustments = LogitAdjustments(np.arange(0, 50_000, 7, dtype=np.int32), np.full(7143, 1.2), np.full(7143, -0.25))
    allowed = np.arange(50_257) % 11 != 0
    kinds = [
        SamplingRow(),
        SamplingRow(1.0, uniform=0.7),
        SamplingRow(0.8, 40, 0.95, 0.02, 0.3, adjustments),
        SamplingRow(1.0, allowed=allowed),
    ]
    params = [kinds[i % len(kinds)] for i in range(33)]
    found = []
    for threads in (1, 2, 3):
        device = _native.Device(threads, isa)
        found.append(device.sample(device.array(logits), params))
    assert found[0] == found[1] == found[2]
    assert found[0] == [device.sample(device.array(logits[i : i + 1]), [params[i]])[0] for i in range(33)]


def test_invalid_rows_are_refused(device):
    x = device.array(random(2, 5))
    ids, ones = np.array([4], np.int32), np.ones(1)
    for params, problem in (
        ([SamplingRow()], "expected a SamplingRow for each of 2 rows of logits, found 1"),
        ([SamplingRow(adjustments=LogitAdjustments(ids + 1, ones, ones))] * 2, "beyond the logits"),
        ([SamplingRow(adjustments=LogitAdjustments(-ids, ones, ones))] * 2, "beyond the logits"),
        ([SamplingRow(adjustments=LogitAdjustments(ids, ones, np.ones(2)))] * 2, "differ in length"),
        ([SamplingRow(allowed=np.ones(4, np.bool_))] * 2, "allowed has 4 entries for 5 tokens"),
    ):
        with pytest.raises(ValueError, match=problem):
            device.sample(x, params)
    with pytest.raises(ValueError, match="logits have no columns"):
        device.sample(device.array(random(1, 0)), [SamplingRow()])
    with pytest.raises(RuntimeError, match="bad_cast"):  # a converted array would be freed before it is read
        device.sample(x, [SamplingRow(adjustments=LogitAdjustments(ids.astype(np.int64), ones, ones))] * 2)
