"""Ports of decoders: of a built-in type its own file, of an unknown one a whole file that marks what it assumes."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from architecture_fixtures import NAMES, TOLERANCE, Fixture, weight

import rushlight
from rushlight.checkpoint import open_headers
from rushlight.errors import ConfigError, PortError
from rushlight.models import ARCHITECTURES
from rushlight.porting.scaffold.port import scaffold

GOLDEN = Path(__file__).parent / "golden"
N_ROWS = 24


class Ported:
    """A checkpoint that is edited, written and ported."""

    def __init__(self, folder, name):
        self.folder, self.fixture = folder, Fixture(name)
        self.config, self.tensors = self.fixture.config, self.fixture.tensors

    def unknown(self):
        """Gives it a type that is not built in."""
        self.config["model_type"] = "newcomer"
        return self

    def prefix(self, prefix):
        renamed = {prefix + name: tensor for name, tensor in self.tensors.items()}
        self.tensors.clear()
        self.tensors.update(renamed)
        return self

    def port(self):
        self.path = self.fixture.write(self.folder) / "my_model.py"
        with open_headers(self.folder) as checkpoint:
            self.written = scaffold(checkpoint, self.path)
        self.path.write_text(self.written.module, encoding="utf-8")
        return self.written

    def load(self, device="reference"):
        return rushlight.load(self.folder, port=self.path, device=device, dtype="f32")

    def error(self, device="reference"):
        """The distance of the logits of the first rows from those of transformers, relative to the largest."""
        found, expected = (
            self.load(device).logits(self.fixture.prompt[:N_ROWS]),
            self.fixture.recorded["logits"][:N_ROWS],
        )
        return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture
def ported(tmp_path):
    return lambda name: Ported(tmp_path / "model", name)


def one_fixture_per_type():
    names = {}
    for name in NAMES:
        names.setdefault(Fixture(name).config["model_type"], name)
    return sorted(names.values())


# Built-in types


def test_every_type_is_ported():
    types = {Fixture(name).config["model_type"] for name in one_fixture_per_type()}
    assert types >= {"llama", "qwen3", "gemma3_text", "gpt_neox"}
    assert types <= {*ARCHITECTURES}


@pytest.mark.parametrize("name", one_fixture_per_type())
def test_a_built_in_type_is_its_own_file(ported, name):
    """Also where the file imports classes from the file of another model."""
    model = ported(name)
    written = model.port()
    assert (written.to_write, written.to_check) == ((), ())
    own = Path(ast.parse(written.module).body[0].value.value.split("rushlight's own ")[1].split(".")[0].strip()).name
    assert own == model.config["model_type"]
    assert model.error() < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "mistral", "gpt_neox"])
def test_a_built_in_type_with_another_prefix(ported, name):
    model = ported(name).prefix("module.")
    model.port()
    assert "module." in model.written.module
    assert model.error("cpu") < TOLERANCE


def test_transposed_weights_without_a_bias_are_refused(ported):
    """No layer has such a weight; `check` writes a script that transposes them."""
    model = ported("qwen3")
    for name, tensor in model.tensors.items():
        if "_proj" in name:
            model.tensors[name] = tensor.T
    with pytest.raises(PortError, match=r"q_proj.*rushlight check"):
        model.port()


def test_a_variant_of_a_derived_type_is_ported_like_an_unknown_one(ported):
    model = ported("qwen3")
    for i in range(2):
        del model.tensors[f"model.layers.{i}.mlp.gate_proj.weight"]
    written = model.port()
    assert written.to_write == ()
    assert "self.up_proj(x)" in written.module
    assert np.isfinite(model.load().logits([1, 2, 3])).all()


# Unknown types

WHOLE = """granite gpt_neox_serial llama_biases llama_longrope mistral olmo2 phi phi3 qwen2_window qwen3 smollm3
    stablelm starcoder2_plain""".split()


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_port_of_an_unknown_type_equals_transformers(ported, name):
    model = ported(name).unknown()
    written = model.port()
    assert written.to_write == ()
    assert len(written.to_check) >= 2
    assert written.module.count("# Assumed: ") == len(written.to_check)
    assert model.error() < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt_neox", "olmo2"])
def test_a_whole_port_runs_on_the_cpu(ported, name):
    model = ported(name).unknown()
    model.port()
    assert model.error("cpu") < TOLERANCE


@pytest.mark.parametrize("prefix", ["", "transformer.", "my.own."])
def test_the_prefix_of_an_unknown_type_is_no_level_of_the_model(ported, prefix):
    model = ported("llama").unknown()
    renamed = {name.replace("model.", prefix): tensor for name, tensor in model.tensors.items()}
    model.tensors.clear()
    model.tensors.update(renamed)
    written = model.port()
    assert ("prefixes=" in written.module) is bool(prefix)
    assert model.error() < TOLERANCE


def test_the_port_of_an_unknown_type_equals_the_reviewed_one(ported):
    model = ported("qwen3_window").unknown()
    assert model.port().module == (GOLDEN / "decoder_port.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "assumed"),
    [
        ("gemma", "embeddings are not multiplied by a factor, such as Gemma's √hidden_size"),
        ("gemma", "norms are x / √(mean of squares) · weight, not · (1 + weight), and do not subtract the mean"),
        ("gptj", "rotary embedding of every layer, of channel pairs (i, i + r/2)"),
        ("gptj", "these keys of config.json change nothing: rotary_dim"),
    ],
)
def test_what_is_wrong_for_a_type_is_among_what_is_assumed(ported, name, assumed):
    model = ported(name).unknown()
    assert assumed in model.port().to_check
    assert re.sub(r"\n +# (?!Assumed)", " ", model.written.module).count(f"# Assumed: {assumed}.") == 1
    assert model.error() > 0.1


def test_keys_that_the_file_does_not_use_are_named(ported):
    model = ported("llama").unknown()
    model.config |= {"strange_scale": 0.5, "partial_norm": True, "harmless": 3, "attention_dropout": 0.1}
    model.port()
    assert "these keys of config.json change nothing: strange_scale, partial_norm" in model.written.to_check
    assert 'benign_keys: ClassVar = frozenset({"attention_bias", "mlp_bias", "partial_norm", "strange_scale"})' in (
        model.written.module
    )
    model.load()


def test_a_setting_that_the_file_has_written_out_is_refused_with_another_value(ported):
    model = ported("granite").unknown()
    model.port()
    config = model.config | {"residual_multiplier": 0.5}
    (model.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"residual_multiplier is 0\.5, which rushlight does not support"):
        model.load()


def test_a_tied_head_that_the_file_lacks(ported):
    model = ported("qwen3").unknown()
    model.tensors.pop("lm_head.weight", None)
    model.config.pop("tie_word_embeddings", None)
    written = model.port()
    assert 'tied={"lm_head.weight": "embed_tokens.weight"}' in written.module
    assert "tie_word_embeddings: bool = field.flag(True)" in written.module
    model.load()


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_only_unknown_modules_are_left_to_write(ported, kind):
    """Latent attention, or a mixture of experts, within blocks of a known form."""
    model = ported("llama").unknown()
    for i in range(2):
        path = f"model.layers.{i}.self_attn.kv_a_proj.weight" if kind == "attention" else f"model.layers.{i}.mlp.router"
        model.tensors[path] = weight(path, (7, 24))
    written = model.port()
    assert written.to_write == (("Attention",) if kind == "attention" else ("MLP",))
    assert "x = x + self.self_attn(self.input_layernorm(x), angles, batch)" in written.module
    module = rushlight.load_module(model.folder, port=model.path, device="reference")
    assert not list(module.named_slots())
    with pytest.raises(PortError, match=r"(Attention|MLP)\.__call__ is still to be written"):
        model.load().logits([1, 2])


def test_stale_buffers_of_an_unknown_type_are_skipped(ported):
    model = ported("llama").unknown()
    for i in range(2):
        model.tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(5, np.float32)
    assert r'buffers=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)' in model.port().module
    assert model.error() < TOLERANCE


@pytest.mark.parametrize("spoil", ["heads", "positions", "rows", "blocks"])
def test_a_config_that_does_not_fit_leaves_all_to_write(ported, spoil):
    model = ported("llama").unknown()
    if spoil == "heads":
        del model.config["num_attention_heads"]
    elif spoil == "positions":
        del model.config["max_position_embeddings"]
    elif spoil == "rows":
        model.config["vocab_size"] = 90
    else:
        model.tensors["model.layers.1.mlp.up_proj.bias"] = np.ones(52, np.float32)
    assert "Newcomer" in model.port().to_write
