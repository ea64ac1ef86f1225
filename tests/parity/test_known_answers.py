"""The published GPT-2 against answers that others have published. Needs its weights, and no PyTorch:

    RUSHLIGHT_GPT2=openai-community/gpt2 pytest tests/parity/test_known_answers.py

The variable holds whatever `rushlight.load` takes: a file, a folder, a hub id.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import rushlight

DATA = Path(__file__).with_name("data")
RECORDED = json.loads((DATA / "recorded_outputs.json").read_text())
LM_EVAL = RECORDED["lm_eval"]


@pytest.fixture(scope="module")
def gpt2():
    source = os.environ.get("RUSHLIGHT_GPT2")
    if not source:
        pytest.skip("RUSHLIGHT_GPT2 does not name the weights of GPT-2 124M")
    model = rushlight.load(source)
    assert model.n_parameters == 124_439_808
    return model


def logprobs(model, ids, targets):
    """log p of each of the last len(targets) tokens that follow `ids`."""
    logits = model.logits(ids)[-len(targets) :].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits[np.arange(len(targets)), targets] - np.log(np.exp(logits).sum(axis=-1))


def test_greedy_ids(gpt2):
    prompt_ids, output_ids = RECORDED["greedy_ids"]["prompt_ids"], RECORDED["greedy_ids"]["output_ids"]
    result = gpt2.generate(prompt_ids, max_tokens=len(output_ids) - len(prompt_ids))
    assert prompt_ids + result.ids == output_ids


@pytest.mark.parametrize("case", RECORDED["greedy_text"]["cases"], ids=lambda case: case["prompt"])
def test_greedy_text(gpt2, case):
    n_tokens = len(gpt2.tokenizer.encode(case["output"])) - len(gpt2.tokenizer.encode(case["prompt"]))
    assert case["prompt"] + gpt2.generate(case["prompt"], max_tokens=n_tokens).text == case["output"]


def test_greedy_until_a_stop_string(gpt2):
    case = LM_EVAL["greedy_until"]
    result = gpt2.generate(case["prompt"], stop=case["stop"])
    assert result.text == case["output"]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("case", LM_EVAL["loglikelihood"]["cases"], ids=lambda case: case["context"][:24])
def test_loglikelihood_of_a_continuation(gpt2, case):
    context, targets = gpt2.tokenizer.encode(case["context"]), gpt2.tokenizer.encode(case["continuation"])
    found = logprobs(gpt2, context + targets[:-1], targets).sum()
    assert found == pytest.approx(case["sum"], rel=LM_EVAL["rel_tol"])


def test_logprob_of_each_token(gpt2):
    case = LM_EVAL["rolling"]
    assert gpt2.tokenizer.encode(case["text"]) == case["ids"]
    ids = [case["prefix_token"], *case["ids"]]
    found = logprobs(gpt2, ids[:-1], ids[1:])
    np.testing.assert_allclose(found, case["logprobs"], rtol=LM_EVAL["rel_tol"])


def test_logprob_of_each_token_in_windows_of_5(gpt2):
    case = LM_EVAL["rolling"]
    ids = [case["prefix_token"], *case["ids"]]
    found = []
    for start in range(0, len(case["ids"]), 5):
        targets = case["ids"][start : start + 5]
        stop = start + len(targets)
        found += logprobs(gpt2, ids[stop - 5 : stop], targets).tolist()
    np.testing.assert_allclose(found, case["logprobs_in_windows_of_5"], rtol=LM_EVAL["rel_tol"])


def test_loss_of_llm_c(gpt2):
    state = json.loads((DATA / "llmc_debug_state.json").read_text())
    found = -np.mean([logprobs(gpt2, x, y) for x, y in zip(state["x"], state["y"], strict=True)])
    assert found == pytest.approx(state["loss"], abs=1e-4)
