"""Verifying correct ports, other dtypes, and weights that differ from the recorded ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.checkpoint import open_checkpoint
from rushlight.proof import verify
from rushlight.proof.report import TOLERANCES
from rushlight.proof.verify import _tolerance

FIXTURES = Path(__file__).parents[1] / "fixtures" / "gpt2"


def test_a_correct_port_passes(gpt2, golden):
    report = verify(gpt2, golden)
    assert report.passed
    assert report.failures == []
    assert report.first is None
    assert report.tolerance == 1e-5
    paths = [result.path for result in report.modules]
    assert paths[:4] == ["wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn"]
    assert paths[-2:] == ["lm_head", ""]
    assert report.logits is not None
    assert report.logits.top1 == 1.0
    assert report.logits.kl < 1e-10
    assert report.logits.greedy == (40, 40)
    assert report.notes == ["the weights were not compared with the recorded ones"]


def test_every_error_is_far_below_the_tolerance(gpt2, golden):
    """Otherwise the tolerance would prove little."""
    report = verify(gpt2, golden)
    assert (
        max(result.teacher_forced for result in report.modules if result.teacher_forced is not None)
        < report.tolerance / 8
    )
    assert max(result.free_running.relative for result in report.modules if result.free_running) < report.limit / 400


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8", "int4"])
def test_rounded_weights_pass_with_their_own_tolerance(spoiled, golden, dtype):
    model = spoiled.load(device="cpu", dtype=dtype)
    with open_checkpoint(spoiled.folder) as checkpoint:
        report = verify(model, golden, checkpoint=checkpoint)
    assert report.failures == []
    assert report.weights == []
    if dtype != "f32":
        assert not verify(model, golden, tolerance=TOLERANCES["f32"]).passed


def test_f64(golden):
    report = verify(rushlight.load(FIXTURES / "gelu_new", dtype="f64"), golden)
    assert report.passed
    assert report.dtype == "f64"


def test_the_coarsest_rounding_decides_the_tolerance():
    """bf16 weights are exact in f32, so their dtype does not loosen the tolerance."""
    assert _tolerance({"f32"}, "float32") == _tolerance({"f64"}, "float64") == 1e-5
    assert _tolerance({"bf16", "f32"}, "float32") == 1e-5
    assert _tolerance({"bf16", "f16"}, "float32") == 1e-2  # keys and values are rounded
    assert _tolerance({"bf16"}, "float32") == _tolerance({"f32"}, "bfloat16") == 1e-2
    assert _tolerance({"int8"}, "bfloat16") == 5e-2


def test_a_given_tolerance(gpt2, golden):
    report = verify(gpt2, golden, tolerance=1e-9)
    assert not report.passed
    assert report.first is not None
    assert report.first.path == "h.0.ln_1"
    assert report.tolerance == 1e-9


def test_equal_values_are_equal_weights(spoiled, golden, tmp_path):
    """The checkpoint has no prefix, another order, buffers and a tied head."""
    tensors = dict(reversed(spoiled.tensors.items()))
    tensors["lm_head.weight"] = tensors["wte.weight"]
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 257, 257), np.float32))
    spoiled.write()
    save_file(tensors, spoiled.folder / "model.safetensors")
    report = verify_again(spoiled, golden)
    assert report.weights == []
    assert report.passed


def verify_again(spoiled, golden):
    model = rushlight.load(spoiled.folder)
    with open_checkpoint(spoiled.folder) as checkpoint:
        return verify(model, golden, checkpoint=checkpoint)


def thirds(tensor):
    q, k, v = np.split(tensor, 3, axis=-1)
    return np.concatenate([k, q, v], axis=-1)


@pytest.mark.parametrize(
    ("name", "change", "how"),
    [
        ("h.1.attn.c_proj.weight", lambda t: t.T, "transposed"),
        ("h.0.attn.c_attn.weight", thirds, "q and k are swapped (two of its thirds)"),
        ("wpe.weight", lambda t: np.roll(t, -1, axis=0), "its rows are shifted by -1"),
        ("h.1.mlp.c_fc.bias", np.zeros_like, "all zeros"),
        ("ln_f.weight", lambda t: t + np.float32(0.1), "other values"),
        (
            "wte.weight",
            lambda t: (t.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
            "rounded to bfloat16, unlike the recorded values",
        ),
    ],
)
def test_different_weights_are_named_and_explained(spoiled, name, change, how):
    spoiled.tensors[name] = np.ascontiguousarray(change(np.ascontiguousarray(spoiled.tensors[name])))
    report = spoiled.report()
    assert [(each.name, each.how) for each in report.weights] == [(name, how)]
    assert any(f"the weights differ from the recorded ones: {name} ({how})" in failure for failure in report.failures)


def test_the_json_is_valid_and_complete(spoiled):
    spoiled.config["activation_function"] = "gelu"
    report = spoiled.report()
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert record["passed"] is False
    assert record["first_divergent"] == {
        "path": "h.0.mlp.act",
        "cause": "it computes gelu_erf where the recording has gelu_tanh",
    }
    assert [module["path"] for module in record["modules"]] == [result.path for result in report.modules]
    assert record["different_weights"] == []
    assert record["logits"]["greedy_tokens"] == 40
    module = next(module for module in record["modules"] if module["path"] == "h.0.mlp.act")
    assert module["recorded"] == "NewGELUActivation()"
    assert module["kind"] == "Activation(gelu_erf)"


def test_greedy_tokens_that_differ_at_a_near_tie_are_not_a_failure(gpt2, golden):
    case = golden.cases[0]
    case.greedy_ids[5] = (case.greedy_ids[5] + 1) % 61
    report = verify(gpt2, golden)
    assert report.failures == ["the greedy tokens differ from the recorded ones after 25 of 40"]
    case.greedy_margins[5] = 1e-7
    report = verify(gpt2, golden)
    assert report.failures == []
    assert report.logits is not None
    assert report.logits.near_tie


def test_a_tokenizer_with_other_ids(golden):
    model = rushlight.load(FIXTURES / "gelu_new")

    class Tokenizer:
        prefix_ids = ()

        def encode(self, text):
            return [1, 2]

    model.tokenizer = Tokenizer()
    golden.cases = golden.cases[:1]
    golden.cases[0].greedy_ids = []
    golden.cases[0].text = "Once upon a time"
    assert verify(model, golden).failures == ["the tokenizer encodes 'Once upon a time' differently"]
