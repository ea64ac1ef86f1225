"""Quantisation error of the logits, on the shape of GPT-2 small."""

import numpy as np
import pytest

pytest.importorskip("rushlight.backends._native")  # the package was installed without a compiler

from benchmarks.checkpoint import GPT2_SMALL, random_tensors
from native_helpers import ArrayTensor

from rushlight.backends.cpu import CPUBackend
from rushlight.generation import Context, LanguageModel
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.nn import bind

N_TOKENS = 48


@pytest.fixture(scope="module")
def logits():
    """(T, V) logits of a random prompt by dtype, with the weights of the benchmarks."""
    config = GPT2Config(**GPT2_SMALL._asdict(), n_inner=4 * GPT2_SMALL.n_embd)
    tensors = {name: ArrayTensor(values) for name, values in random_tensors(GPT2_SMALL).items()}
    ids = np.random.default_rng(0).integers(0, GPT2_SMALL.vocab_size, N_TOKENS).tolist()

    def of(dtype):
        ops, model = CPUBackend(dtype), GPT2(config)
        bind(model, tensors, ops, rules=GPT2.rules, tie=True, title=dtype)
        return Context(LanguageModel.of(model, ops, config), N_TOKENS).feed(ids, all_logits=True)

    return {dtype: of(dtype) for dtype in ("f32", "f16", "bf16", "int8", "int4")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mean", "most"),
    [("f16", 8e-4, 6e-3), ("bf16", 8.4e-3, 0.057), ("int8", 0.042, 0.29), ("int4", 0.22, 1.5)],
)
def test_quantisation_error_is_bounded(logits, dtype, mean, most):
    """Mean and maximum error in standard deviations of the logits; the bounds are a fifth above the observed errors.

    bf16 is at its worst where the processor multiplies bf16 and activations are rounded too.
    """
    distance = np.abs(logits[dtype] - logits["f32"]) / logits["f32"].std()
    assert distance.mean() <= mean
    assert distance.max() <= most
