"""Checks of decoders of Llama's form: prefixes, tied heads, buffers, shards, orientation, heads, fused projections."""

import json

import numpy as np
import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.errors import BindError, FormatError


class Decoder:
    """A checkpoint of a Llama of 4 heads over 2 of 10 channels, to be spoiled."""

    def __init__(self, folder):
        self.folder, self.fixture = folder, Fixture.read("llama")
        self.config, self.tensors = self.fixture.config, self.fixture.tensors

    def rename(self, old, new):
        self.fixture.tensors = self.tensors = {name.replace(old, new): tensor for name, tensor in self.tensors.items()}
        return self

    def layers(self, name):
        return [each for each in self.tensors if each.endswith(f".{name}.weight")]

    def check(self, **options):
        return rushlight.check(self.fixture.write(self.folder), **options)


@pytest.fixture
def llama(tmp_path):
    return Decoder(tmp_path / "llama")


def problems(report):
    return [finding for finding in report.findings if finding.is_problem]


def only_problem(report):
    (problem,) = problems(report)
    return problem


def titles(report):
    return [finding.title for finding in report.findings]


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_may_have_the_prefix_or_not(llama, prefix):
    report = llama.rename("model.", prefix).check()
    assert report.fits
    assert report.model.startswith("llama (num_hidden_layers 2, hidden_size 24")


@pytest.mark.parametrize(("old", "new"), [("model.", "module.model."), ("model.", "_orig_mod.model.")])
def test_other_prefixes_are_one_problem(llama, old, new):
    problem = only_problem(llama.rename(old, new).check())
    assert problem.cause == "prefix"


@pytest.mark.parametrize(("prefix", "shown"), [("model.", "model.layers.1.mlp.up_proj.weight"), ("", "layers.1.mlp")])
def test_a_tensor_is_named_as_the_file_has_it(llama, prefix, shown):
    llama.rename("model.", prefix)
    llama.tensors[f"{prefix}layers.1.mlp.up_proj.weight"] = np.ones((51, 24), np.float32)
    problem = only_problem(llama.check())
    assert problem.cause == "shape"
    assert problem.evidence[0].name.startswith(shown)


def test_a_tied_head_may_be_stored_or_not(llama):
    assert llama.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in llama.tensors
    llama.tensors["lm_head.weight"] = llama.tensors["model.embed_tokens.weight"]
    report = llama.check()
    assert report.fits
    assert "lm_head.weight is tied to embed_tokens.weight" in titles(report)
    del llama.tensors["model.embed_tokens.weight"]
    report = llama.check()
    assert report.fits
    assert "embed_tokens.weight is stored only as lm_head.weight" in titles(report)


def test_a_head_that_is_not_tied_is_needed(llama):
    del llama.config["tie_word_embeddings"]  # false by default
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("tie", "lm_head.weight is missing")
    llama.tensors["lm_head.weight"] = llama.tensors["model.embed_tokens.weight"] + 1
    assert llama.check().fits
    llama.config["tie_word_embeddings"] = True
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("tie", "lm_head.weight differs from embed_tokens.weight")


def test_stale_buffers_are_a_note(llama):
    for i in range(2):
        llama.tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(5, np.float32)
    report = llama.check()
    assert report.fits
    assert "ignored buffers" in titles(report)


def test_a_missing_shard_is_named(llama):
    folder = llama.fixture.write(llama.folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(llama.tensors, "model-00001-of-00002.safetensors")
    names |= {"model.layers.2.input_layernorm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(FormatError, match=r"model-00002-of-00002\.safetensors"):
        rushlight.check(folder)


def test_missing_layers_are_one_problem(llama):
    for name in [name for name in llama.tensors if ".layers.0." in name]:
        del llama.tensors[name]
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("blocks", "blocks are missing: layers.0")


def test_transposed_weights_are_one_problem(llama):
    for name, tensor in llama.tensors.items():
        if "_proj" in name:
            llama.tensors[name] = tensor.T
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("transposed", "Conv1D weights where the model has Linear")
    assert len(problem.tensors) == 14


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_key_value_heads", 4, "num_key_value_heads is 4 in config.json, 2 in the tensors"),
        ("num_key_value_heads", 1, "num_key_value_heads is 1 in config.json, 2 in the tensors"),
        ("head_dim", 6, "head_dim is 6 in config.json, 10 in the tensors"),
        ("num_attention_heads", 2, "num_attention_heads is 2 in config.json, 4 in the tensors"),
        ("intermediate_size", 96, "intermediate_size is 96 in config.json, 52 in the tensors"),
    ],
)
def test_a_config_that_contradicts_the_shapes_is_one_problem(llama, key, value, expected):
    llama.config[key] = value
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("config", "config.json does not match the tensors")
    assert problem.why == expected
    with pytest.raises(BindError):
        rushlight.load(llama.folder)


def test_heads_that_no_single_setting_explains_are_reported_by_tensor(llama):
    for name in llama.layers("k_proj"):
        llama.tensors[name] = np.ones((7, 24), np.float32)
    assert only_problem(llama.check()).cause == "shape"


@pytest.mark.parametrize(
    ("parts", "fused", "rows"),
    [(("q_proj", "k_proj", "v_proj"), "qkv_proj", "40, 20, 20"), (("gate_proj", "up_proj"), "gate_up_proj", "52, 52")],
)
def test_fused_projections_are_one_problem(llama, parts, fused, rows):
    for i in range(2):
        stem = f"model.layers.{i}.{'self_attn' if 'q_proj' in parts else 'mlp'}."
        tensors = [llama.tensors.pop(f"{stem}{name}.weight") for name in parts]
        llama.tensors[f"{stem}{fused}.weight"] = np.concatenate(tensors)
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("renamed", f"{fused} where the model has {', '.join(parts)}")
    assert f"split them into {rows}" in problem.fix


def test_projections_that_the_model_has_fused_are_one_problem(llama, tmp_path):
    (tmp_path / "port.py").write_text(FUSED_PORT)
    problem = only_problem(llama.check(port=tmp_path / "port.py"))
    assert problem.title == "gate_proj, up_proj where the model has gate_up_proj"
    assert "concatenate their rows as gate_up_proj" in problem.fix


FUSED_PORT = """
from rushlight.models.llama import DecoderLayer, Llama
from rushlight.nn import Linear, Module


class MLP(Module):
    def __init__(self, config):
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x):
        gate, up = self.ops.split(self.gate_up_proj(x), 2)
        return self.down_proj(self.ops.activation(gate, "silu") * up)


class Layer(DecoderLayer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.mlp = MLP(config)


class Fused(Llama):
    decoder_layer = Layer


ARCHITECTURE = Fused
"""


def test_the_model_type_of_another_model_is_one_problem(llama, tales_tensors):
    """config.json's model_type decides, whatever the names of the tensors are."""
    llama.fixture.tensors = dict(tales_tensors)
    problem = only_problem(llama.check())
    assert (problem.cause, problem.title) == ("architecture", "another model")
    assert "those of gpt2" in titles(llama.check())[-1]
