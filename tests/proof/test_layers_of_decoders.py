"""Verifying a port with the layers beyond GPT-2's: a norm without bias, RMS norms, rotary angles, a scaled table."""

import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.backends.reference import ReferenceWeight
from rushlight.nn import Activation, Module, NameRules
from rushlight.proof import verify
from rushlight.proof.diagnosis.causes import why_output
from rushlight.proof.diagnosis.trial import Source, Trial

PORT = """
from dataclasses import dataclass
from typing import ClassVar

from rushlight.models import PretrainedModel, TextConfig, field
from rushlight.nn import Embedding, LayerNorm, Linear, Module, ModuleList, RMSNorm, Rotary


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    model_type: ClassVar = "tiny"
    hidden_size: int = field.width(axis=("embed.weight", 1))
    num_hidden_layers: int = field.layers(blocks="layers")
    num_attention_heads: int = field.heads()
    num_key_value_heads: int = field.kv_heads(default=lambda read: read["num_attention_heads"])
    max_position_embeddings: int = field.positions()


class Layer(Module):
    def __init__(self, config, layer):
        C, D = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.layer, self.n_head, self.scale = layer, config.num_attention_heads, D**-0.5
        self.norm = LayerNorm(C, eps=1e-5, bias=False)
        self.q_proj = Linear(C, C, bias=False)
        self.k_proj = Linear(C, config.num_key_value_heads * D, bias=False)
        self.v_proj = Linear(C, config.num_key_value_heads * D, bias=False)
        self.q_norm = RMSNorm(D, eps=1e-6)
        self.o_proj = Linear(C, C, bias=False)

    def __call__(self, x, angles, batch):
        y = self.norm(x)
        q = self.ops.rotary(self.q_norm(self.q_proj(y)), angles, self.n_head)
        k = self.ops.rotary(self.k_proj(y), angles, self.n_head // 2)
        heads = self.ops.attention(
            q, k, self.v_proj(y), batch, layer=self.layer, n_head=self.n_head, scale=self.scale
        )
        return x + self.o_proj(heads)


class Model(PretrainedModel):
    config_type: ClassVar = Config

    def __init__(self, config):
        self.embed = Embedding(config.vocab_size, config.hidden_size, scale=3.0)
        self.positions = Embedding(config.max_position_embeddings + 2, config.hidden_size, first_row=2)
        self.rotary_emb = Rotary([1.0, 0.25])
        self.layers = ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=1e-6, offset=1.0)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch):
        x = self.embed(batch.ids) + self.positions(batch.positions)
        angles = self.rotary_emb(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.head(self.norm(self.ops.take(x, batch.logit_rows)))


ARCHITECTURE = Model
"""
CONFIG = {
    "model_type": "tiny",
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 20,
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def decoder(tmp_path):
    """A decoder of two layers, with random weights."""
    (tmp_path / "port.py").write_text(textwrap.dedent(PORT))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (11, 16), "positions.weight": (22, 16), "norm.weight": (16,), "head.weight": (11, 16)}
    for i in range(2):
        shapes |= {f"layers.{i}.norm.weight": (16,), f"layers.{i}.q_norm.weight": (4,)}
        shapes |= {f"layers.{i}.{name}.weight": (16, 16) for name in ("q_proj", "o_proj")}
        shapes |= {f"layers.{i}.{name}.weight": (8, 16) for name in ("k_proj", "v_proj")}
    tensors = {name: rng.normal(0.3, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return rushlight.load(tmp_path, port=tmp_path / "port.py", device="reference")


@pytest.fixture
def golden(decoder, record_port):
    return record_port(decoder, IDS)


def first(decoder, golden):
    report = verify(decoder, golden)
    assert not report.passed
    return report.first.path, report.first.cause


def test_a_correct_port_passes(decoder, golden):
    report = verify(decoder, golden)
    assert report.failures == []
    assert {result.status for result in report.modules} == {"equal"}


def test_rotary_angles_are_compared_with_cosines_and_sines(decoder, golden):
    """PyTorch's module returns a tuple, each for both halves of a head."""
    report = verify(decoder, golden)
    assert ("rotary_emb", "equal") in [(result.path, result.status) for result in report.modules]
    assert report.notes == ["the weights were not compared with the recorded ones"]


def test_rotary_angles_under_another_name_are_compared(decoder, golden):
    for case in golden.cases:
        case.calls = [
            replace(call, path="model.rotary_emb") if call.path == "rotary_emb" else call for call in case.calls
        ]
    assert verify(decoder, golden).failures == []
    decoder.module.rotary_emb.scale = 0.5
    assert first(decoder, golden)[0] == "rotary_emb"


def test_rotary_angles_of_an_unknown_layout_are_not_compared(decoder, golden):
    for case in golden.cases:
        case.calls = [replace(call, more=()) if call.path == "rotary_emb" else call for call in case.calls]
    report = verify(decoder, golden)
    assert report.failures == []
    assert any(note.startswith("rotary angles, which are compared only through") for note in report.notes)


def test_a_module_without_weights_is_not_missing(decoder, golden):
    for case in golden.cases:
        last = case.calls[-2]
        case.calls += [
            replace(last, path="act_fn", input=None),
            replace(last, path="layers.0.extra", input=None),
        ]
    golden.weights = {"layers.0.extra.weight": "", "head.weight": ""}
    notes = verify(decoder, golden).notes
    assert [note for note in notes if "does not have" in note] == [
        "recorded modules that the port does not have: layers.0.extra"
    ]


def test_a_module_that_is_named_otherwise_in_the_files_is_compared(decoder, golden):
    """GPT-NeoX's files have embed_out, and the module is lm_head."""
    for case in golden.cases:
        case.calls = [replace(call, path="lm_head") if call.path == "head" else call for call in case.calls]
    decoder.module.head.weight = ReferenceWeight(np.zeros((16, 11), np.float32), np.zeros((16, 11), np.float32))
    assert "head" not in [result.path for result in verify(decoder, golden).modules]
    type(decoder.module).rules = NameRules(modules={"lm_head": "head"})
    assert first(decoder, golden)[0] == "head"


def weight(values):
    """A loaded vector."""
    array = np.asarray(values, np.float32)
    return ReferenceWeight(array, array)


@pytest.mark.parametrize(
    ("path", "changes", "expected"),
    [
        ("layers.1.norm", {"eps": 1e-2}, "eps is 0.01, but 1e-05 in the recording"),
        ("layers.1.norm", {"weight": np.linspace(-1, 1, 16)}, "its weight differs; the bias is right"),
        (
            "layers.0.norm",
            {"bias": np.linspace(-1, 1, 16)},
            "the bias differs: every row differs by the same values, in 16 of 16 channels",
        ),
        ("layers.0.q_norm", {"eps": 1e-2}, "eps is 0.01, but 1e-06 in the recording"),
        ("layers.0.q_norm", {"weight": np.linspace(-1, 1, 4)}, "its weight differs"),
        (
            "norm",
            {"offset": 0.0},
            "it multiplies by weight, and the recording by 1 + weight: offset=1.0 is missing",
        ),
        (
            "layers.0.q_norm",
            {"offset": 1.0},
            "it multiplies by 1 + weight, and the recording by weight: offset is to be 0",
        ),
        (
            "norm",
            {"weight": np.full(16, np.nan)},
            "its weights hold NaN: 128 values are not finite, everywhere, unlike the recorded ones",
        ),
        ("embed", {"scale": 1.0}, "the recording is 3 times what it computes: its scale is 1, not 3"),
        (
            "positions",
            {"first_row": 1},
            "its rows are shifted: row i + 1 is the recorded row i; positions off by one",
        ),
    ],
)
def test_a_spoiled_layer_is_named(decoder, golden, path, changes, expected):
    module = dict(decoder.module.named_modules())[path]
    for name, value in changes.items():
        setattr(module, name, weight(value) if isinstance(value, np.ndarray) else value)
    assert first(decoder, golden) == (path, expected)


def test_a_submodule_may_have_the_name_layer():
    """Attention takes the number of its block from an attribute `layer`, which can be anything in another module."""

    class Block(Module):
        def __init__(self):
            self.layer = Activation("relu")

    rng = np.random.default_rng(0)
    fused, found, recorded = rng.normal(size=(5, 12)), rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    trial = Trial(found, recorded, [Source("c_attn", fused)], [], 1e-5)
    assert why_output(Block(), fused, trial) == ""
