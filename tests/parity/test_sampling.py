"""Sampling compared with transformers' logits processors on the same logits."""

import numpy as np
import pytest

from rushlight.backends import open_backend
from rushlight.backends.reference import probabilities
from rushlight.generation import Sampler, SamplingParams

pytestmark = pytest.mark.parity

SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 10**6},
    {"temperature": 1.0, "top_p": 0.1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 1.0, "min_p": 0.5},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    {"temperature": 1.5, "top_k": 100, "top_p": 0.8, "min_p": 0.05},
]


def some_logits():
    """Returns (V,) logits in float64, flat and peaked, of several sizes."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size) * scale for size in (3, 50, 1000, 50257) for scale in (0.3, 3.0, 12.0)]


def warped(torch, transformers, logits, settings):
    """Returns the probabilities of transformers, with its warpers in the order of its `generate`."""
    warpers = transformers.LogitsProcessorList()
    if settings["temperature"] != 1:
        warpers.append(transformers.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        warpers.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(transformers.TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        warpers.append(transformers.MinPLogitsWarper(settings["min_p"]))
    return torch.softmax(warpers(None, torch.tensor(logits)[None]), dim=-1)[0].numpy()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_equal_transformers(torch, transformers, settings):
    for logits in some_logits():
        expected = warped(torch, transformers, logits, settings)
        found = probabilities(logits, **settings)
        assert np.array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found / found.sum(), expected, rtol=1e-12)


@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.2, 3.0])
def test_repetition_penalty_equals_transformers(torch, transformers, penalty):
    """Greedy decoding with constant logits: each token is penalised once it was generated."""
    rng = np.random.default_rng(1)
    ops = open_backend("reference", "f64")
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    for logits in some_logits():
        prompt = rng.integers(logits.size, size=5).tolist()
        sampler = Sampler(SamplingParams(repetition_penalty=penalty), logits.size, prompt)
        ids = list(prompt)
        for position in range(5, 25):
            expected = processor(torch.tensor([ids]), torch.tensor(logits)[None]).argmax().item()
            assert ops.sample(logits[None], [sampler.row(position)]) == [expected]
            sampler.accept_token(expected)
            ids.append(expected)
