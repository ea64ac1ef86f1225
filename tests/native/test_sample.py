"""Native sampling against the sampler in NumPy: the same tokens for the same random numbers."""

import numpy as np
import pytest
from native_helpers import random

from rushlight.generation import SamplingParams
from rushlight.generation.sampler import probabilities

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
def test_the_draw_is_that_of_the_sampler_in_numpy(device, settings, vocab_size):
    params = SamplingParams(**{"temperature": 1.0} | settings)
    logits = 3 * random(vocab_size)
    cumulative = np.cumsum(probabilities(logits, params.temperature, params.top_k, params.top_p, params.min_p))
    for share in np.random.default_rng(1).random(40):
        token = device.sample(logits, params.temperature, params.top_k, params.top_p, params.min_p, share)
        low, high = (cumulative[token - 1] if token else 0) / cumulative[-1], cumulative[token] / cumulative[-1]
        # Exactly at the border of two tokens either may come: the exponentials are those of float32.
        assert low - 1e-6 <= share <= high + 1e-6
        assert high > low


def test_equals_at_the_edge_of_top_k_all_stay(device):
    logits = np.array([0, 5, 5, 5, 1], np.float32)
    assert {device.sample(logits, 1.0, 2, 1.0, 0.0, share) for share in np.linspace(0, 0.999, 50)} == {1, 2, 3}


def test_of_equals_at_the_edge_of_top_p_the_first_stay(device):
    logits = np.zeros(1000, np.float32)
    logits[::2] = 1.0
    n_kept = np.count_nonzero(probabilities(logits, 1.0, 0, 0.4, 0.0))
    drawn = {device.sample(logits, 1.0, 0, 0.4, 0.0, share) for share in np.linspace(0, 0.999999, 3000)}
    assert drawn == set(range(0, 2 * n_kept, 2))


def test_what_is_impossible_is_not_drawn(device):
    logits = np.full(300, -np.inf, np.float32)
    logits[[5, 290]] = 3.0
    for top_k, top_p in ((0, 1.0), (100, 1.0), (0, 0.9999), (100, 0.9999)):
        assert {device.sample(logits, 1.0, top_k, top_p, 0.0, share) for share in (0, 0.3, 0.7, 0.9999)} == {5, 290}


def test_the_ends_of_the_range(device):
    logits = np.array([-np.inf, 2, 3, -np.inf], np.float32)
    assert device.sample(logits, 1.0, 0, 1.0, 0.0, 0.0) == 1
    assert device.sample(logits, 1.0, 0, 1.0, 0.0, np.nextafter(1, 0)) == 2
    with pytest.raises(ValueError, match="no logits"):
        device.sample(logits[:0], 1.0, 0, 1.0, 0.0, 0.5)
