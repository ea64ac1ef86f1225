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
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 5000])
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


def test_the_ends_of_the_range(device):
    logits = np.array([-np.inf, 2, 3, -np.inf], np.float32)
    assert device.sample(logits, 1.0, 0, 1.0, 0.0, 0.0) == 1
    assert device.sample(logits, 1.0, 0, 1.0, 0.0, np.nextafter(1, 0)) == 2
    with pytest.raises(ValueError, match="no logits"):
        device.sample(logits[:0], 1.0, 0, 1.0, 0.0, 0.5)
