"""SmolLM2-135M-Instruct, a Llama with 3 key/value heads for 9, compared with transformers."""

import json
import subprocess
import sys

import numpy as np
import pytest
from real_helpers import assert_close, assert_same_bits, assert_verified, greedy, logits

import rushlight

pytestmark = pytest.mark.real

FOLDER = "smollm2"
QUESTION = "What is the capital of France?"
VOCAB_SIZE = 49_152
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(real_models):
    return real_models(FOLDER)


@pytest.fixture(scope="module")
def model(folder):
    return rushlight.load(folder, dtype="f32", device="cpu")


def asked(theirs, question):
    messages = [{"role": "user", "content": question}]
    return theirs.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.fixture(scope="module")
def answer_ids(theirs):
    return theirs.greedy(asked(theirs, QUESTION), 200)


def test_an_answer_equals_transformers(folder, theirs, answer_ids):
    """`rushlight chat` keeps the checkpoint's bf16 weights, which f32 represents exactly."""
    options = ["--prompt", QUESTION, "--temp", "0", "--max-tokens", "200", "--device", "cpu", "--dtype", "f32"]
    command = [sys.executable, "-m", "rushlight", "chat", str(folder), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = theirs.tokenizer.decode(answer_ids, skip_special_tokens=True)
    assert "Paris" in expected
    assert json.loads(done.stdout)["content"] == expected


def test_200_greedy_tokens_equal_transformers(model, theirs):
    ids = asked(theirs, "Write a story of 300 words about a lighthouse keeper and a whale.")
    expected = theirs.greedy(ids, 200)
    assert len(expected) == 200
    assert greedy(model, ids, 200) == expected


def test_logits_at_8000_positions_equal_transformers(model, theirs):
    ids = np.random.default_rng(0).integers(5, VOCAB_SIZE, size=8000).tolist()
    # Not row 1: after two random tokens the rounding of float32, on either side, grows to 2e-5 of the greatest logit.
    rows = [0, 100, 255, 256, 2047, 4095, 7998, 7999]
    assert_close(logits(model, ids, rows), theirs.logits(ids, rows), TOLERANCE)


def test_verifies(folder, tmp_path, torch):
    assert_verified(
        folder, tmp_path, ["The quick brown fox jumps over the lazy dog.", "def add(a, b):\n    return a + b"]
    )


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8", "int4"])
def test_results_have_the_same_bits_in_chunks_batches_and_threads(folder, dtype):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(5, VOCAB_SIZE, size=size).tolist() for size in (1, 40, 150)]
    assert_same_bits(folder, dtype, prompts, 12)
