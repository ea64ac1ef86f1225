"""The logit lens, with the embedded model."""

import numpy as np
import pytest

import rushlight
from rushlight.errors import RequestError
from rushlight.generation.runner import SCORED_ROWS

TEXT = "Once upon a time there was a fox"


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_the_last_block_predicts_the_output_of_the_model(model):
    seen = rushlight.lens(model, TEXT, top_k=7)
    p = softmax(model.logits(TEXT))
    assert seen.blocks == [f"h.{i}" for i in range(6)]
    assert seen.top_ids.shape == seen.top_probabilities.shape == (6, len(p), 7)
    assert np.array_equal(seen.top_ids[-1], np.argsort(-p, axis=1)[:, :7])
    assert np.array_equal(seen.top_probabilities[-1], -np.sort(-p, axis=1)[:, :7])


def test_a_block_predicts_the_output_of_the_model_without_later_blocks(model):
    """With every later block patched to return its input, the model ends with block 2."""
    seen = rushlight.lens(model, TEXT)
    with model.trace("h.2") as trace:
        model.logits(TEXT)
    with model.patch({f"h.{i}": lambda x: trace["h.2"] for i in (3, 4, 5)}):
        p = softmax(model.logits(TEXT))
    assert np.array_equal(seen.top_ids[2], np.argsort(-p, axis=1)[:, :5])


def test_last_selects_the_last_positions(model):
    ids = list(range(3, 3 + 2 * SCORED_ROWS))
    full, last = rushlight.lens(model, ids), rushlight.lens(model, ids, last=5)
    assert (full.first, last.first, last.prompt_ids) == (0, len(ids) - 5, ids)
    assert np.array_equal(last.top_ids, full.top_ids[:, -5:])
    assert np.array_equal(last.top_probabilities, full.top_probabilities[:, -5:])
    assert rushlight.lens(model, ids[:3], last=50).top_ids.shape == (6, 3, 5)


def test_top_k_is_clamped_to_the_vocabulary(model):
    assert rushlight.lens(model, "fox", top_k=10**6).top_ids.shape[2] == model.config.vocab_size


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"last": 0}])
def test_arguments_below_1_are_an_error(model, wrong):
    with pytest.raises(RequestError, match="must be 1 or more"):
        rushlight.lens(model, TEXT, **wrong)


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(RequestError, match="no tokens"):
        rushlight.lens(model, "")


def test_a_model_without_readout_is_an_error(model, monkeypatch):
    monkeypatch.delattr(type(model.module), "readout")
    with pytest.raises(RequestError, match=r"has no method readout"):
        rushlight.lens(model, TEXT)
