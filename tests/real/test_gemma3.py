"""Gemma-3-270M, with windows of 512 in five layers of six, compared with transformers."""

import numpy as np
import pytest
from real_helpers import assert_close, assert_same_bits, assert_verified, greedy, logits

import rushlight

pytestmark = pytest.mark.real

FOLDER = "gemma3"
PROMPT = "Once upon a time"
VOCAB_SIZE = 262_144
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(real_models):
    return real_models(FOLDER)


@pytest.fixture(scope="module")
def model(folder):
    return rushlight.load(folder, dtype="f32", device="cpu")


@pytest.fixture(scope="module")
def long_ids(theirs):
    """A text of more than 600 tokens, with the beginning-of-text token."""
    lines = [f"{i}. The lighthouse keeper counts {i * i} waves, and writes the number down." for i in range(1, 45)]
    ids = theirs.tokenizer("\n".join(lines)).input_ids
    assert len(ids) > 600
    return ids


def test_a_raw_prompt_is_continued_as_by_transformers(model, theirs):
    ids = theirs.tokenizer(PROMPT).input_ids
    assert ids[0] == model.config.bos_token_id == 2
    assert greedy(model, ids, 100) == theirs.greedy(ids, 100)


def test_greedy_tokens_past_the_window_equal_transformers(model, theirs, long_ids):
    assert greedy(model, long_ids, 60) == theirs.greedy(long_ids, 60)


def test_logits_past_the_window_equal_transformers(model, theirs):
    ids = [2, *np.random.default_rng(0).integers(5, VOCAB_SIZE, size=1099).tolist()]
    rows = [0, 1, 255, 510, 511, 512, 513, 1023, 1098, 1099]
    assert_close(logits(model, ids, rows), theirs.logits(ids, rows), TOLERANCE)


def test_verifies(folder, tmp_path, torch):
    assert_verified(folder, tmp_path, ["The quick brown fox jumps over the lazy dog."])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8", "int4"])
def test_results_have_the_same_bits_in_chunks_batches_and_threads(folder, dtype):
    rng = np.random.default_rng(1)
    prompts = [[2, *rng.integers(5, VOCAB_SIZE, size=size).tolist()] for size in (1, 40, 150)]
    assert_same_bits(folder, dtype, prompts, 8)
