"""Types that are not built in are refused by name, with what is near."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.checkpoint import open_checkpoint
from rushlight.errors import ConfigError
from rushlight.loading.near_types import NEAR_TYPES, describe_type, refusal, why_not
from rushlight.models import ARCHITECTURES
from rushlight.models.catalogue import CATALOGUE

BUILT_IN = {each.model_type for each in CATALOGUE}


def test_what_is_near_is_built_in_and_what_is_refused_is_not():
    assert {known.near for known in NEAR_TYPES.values()} - BUILT_IN == {""}
    assert not {*NEAR_TYPES} & (BUILT_IN | {*ARCHITECTURES, "gemma3"})


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("mixtral", "a mixture-of-experts model, which rushlight does not run"),
        ("deepseek_v3", "a mixture-of-experts model, which rushlight does not run"),
        ("gpt_oss", "a mixture-of-experts model, which rushlight does not run"),
        ("llava", "a model of images and text, which rushlight does not run"),
        ("whisper", "an encoder-decoder model, which rushlight does not run"),
        ("bert", "an encoder, which rushlight does not run"),
        ("mamba", "a state-space model, which rushlight does not run"),
        ("mpt", "a decoder that is not built in"),
    ],
)
def test_a_type_is_described(model_type, kind):
    assert describe_type(model_type).startswith(f"{model_type} is {kind}")


@pytest.mark.parametrize(
    ("model_type", "near"),
    [
        ("qwen2_moe", "; the dense qwen2 is built in"),
        ("paligemma", "; the text-only gemma is built in"),
        ("recurrent_gemma", "; the similar gemma is built in"),
        ("falcon", "; the most similar built-in type is gpt_neox"),
        ("t5", ""),
    ],
)
def test_what_is_near_is_named_if_it_is_built_in(monkeypatch, model_type, near):
    monkeypatch.setattr("rushlight.loading.near_types.ARCHITECTURES", BUILT_IN)
    assert describe_type(model_type).partition(";")[1:] == (near[:1], near[1:])
    monkeypatch.setattr("rushlight.loading.near_types.ARCHITECTURES", set())
    assert ";" not in describe_type(model_type)


@pytest.mark.parametrize(("model_type", "is_portable"), [("falcon", True), ("lalma", True), ("bert", False)])
def test_a_decoder_can_be_ported(model_type, is_portable):
    message, remedy = refusal(model_type, [])
    assert model_type in message
    assert ("rushlight port" in remedy) == is_portable
    assert "`rushlight models` lists what is built in" in remedy


def test_the_fix_of_a_quantised_checkpoint_is_not_to_port_it():
    message, remedy = refusal("lalma", ["model.layers.0.self_attn.q_proj.qweight"])
    assert "a GPTQ or AWQ quantised model" in message
    assert remedy.startswith("use the checkpoint it was quantised from")


def test_experts_are_recognised_by_their_names():
    message, _ = refusal("lalma_moe", ["model.layers.0.mlp.experts.0.up_proj.weight"])
    assert "a mixture-of-experts model, which rushlight does not run" in message


@pytest.fixture
def mixture(tmp_path):
    tensors = {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_moe"}))
    return tmp_path


def test_load_check_and_inspect_say_the_same(mixture):
    sentence = describe_type("qwen2_moe")
    with pytest.raises(ConfigError) as refused:
        rushlight.load(mixture)
    assert refused.value.message == sentence
    [problem] = [finding for finding in rushlight.check(mixture).findings if finding.is_problem]
    assert problem.why == f"{sentence}."
    with open_checkpoint(mixture) as checkpoint:
        assert why_not(checkpoint).startswith(f"{sentence}; ")


def test_nothing_speaks_against_a_built_in_type(mixture):
    (mixture / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with open_checkpoint(mixture) as checkpoint:
        assert why_not(checkpoint) is None


@pytest.mark.parametrize(("config", "why"), [("{", "config.json is invalid: "), ("{}", "model_type is missing; ")])
def test_a_config_without_a_type_is_named(mixture, config, why):
    (mixture / "config.json").write_text(config)
    with open_checkpoint(mixture) as checkpoint:
        assert why_not(checkpoint).startswith(why)


def test_a_missing_config_is_named(mixture):
    (mixture / "config.json").unlink()
    with open_checkpoint(mixture) as checkpoint:
        assert why_not(checkpoint).startswith("no config.json; by its tensor names this is of the Llama family")
