"""Every architecture compared with transformers as it is installed: eager attention, float32."""

import copy

import numpy as np
import pytest
from architecture_fixtures import NAMES, TOLERANCE, Fixture

from rushlight.errors import ConfigError
from rushlight.models import ARCHITECTURES, field

pytestmark = pytest.mark.parity

VARIANTS = {"ministral"}
"""Fixtures that another architecture of transformers computes."""
LONG, CHUNK = 8000, 1000
ROPES = ["llama", "llama_linear", "llama_llama3", "llama_yarn", "llama_longrope_long", "stablelm_half", "mistral"]
"""A fixture of each kind of rotary embedding; those of Phi-3 magnify PyTorch's own rounding to 3e-5."""


@pytest.fixture
def from_pretrained(torch, transformers):
    def from_pretrained(folder):
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()

    return from_pretrained


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VARIANTS])
def test_logits_equal_transformers(name, tmp_path, torch, from_pretrained):
    fixture = Fixture(name)
    model = fixture.load(tmp_path, device="cpu", dtype="f32")
    ids = fixture.prompt + fixture.greedy
    theirs = from_pretrained(tmp_path)
    expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert error(model.logits(ids), expected) < 2 * TOLERANCE
    exact = theirs.double()(torch.tensor([ids])).logits[0].numpy()
    assert error(fixture.load(tmp_path, device="reference", dtype="f64").logits(ids), exact) < TOLERANCE


@pytest.mark.parametrize("name", ROPES)
def test_positions_to_8000(name, tmp_path, torch, transformers, from_pretrained):
    fixture = Fixture(name)
    fixture.config["max_position_embeddings"] = fixture.context = 2 * LONG
    ids = np.random.RandomState(0).randint(3, 97, LONG).tolist()
    found = fixture.load(tmp_path, device="cpu", dtype="f32").logits(ids)
    theirs = from_pretrained(tmp_path)
    cache = transformers.DynamicCache(config=theirs.config)
    for start in range(0, LONG, CHUNK):  # the scores of all positions at once would be gigabytes
        expected = theirs(torch.tensor([ids[start : start + CHUNK]]), cache=cache).logits[0].numpy()
    assert error(found[-CHUNK:], expected) < 2 * TOLERANCE


SIZES = ("vocabulary", "positions", "width", "layers", "heads")


@pytest.mark.parametrize("model_type", sorted({*ARCHITECTURES} - {"gpt2", "gemma3"}))
def test_defaults_equal_those_of_transformers(model_type, transformers):
    theirs = transformers.AutoConfig.for_model(model_type)
    config_type = ARCHITECTURES[model_type].config_type
    declared = field.declared(config_type)
    sizes = [name for name, each in declared.items() if each.role in SIZES or name in ("intermediate_size", "ffn_dim")]
    ours = config_type.from_json({"model_type": model_type} | {name: getattr(theirs, name, 2048) for name in sizes})
    assert_same_settings(ours, theirs)


def assert_same_settings(ours, theirs):
    declared = field.declared(type(ours))
    compared = {}
    for name in declared:
        value = getattr(theirs, name, None)
        if isinstance(value, bool | float | str) or (value and declared[name].role in ("kv_heads", "head_dim")):
            compared[name] = value
    assert {name: getattr(ours, name) for name in compared} == compared
    if rope := getattr(theirs, "rope_parameters", None):
        rope = rope.get("full_attention", rope)
        head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        assert ours.rope_parameters.theta == rope["rope_theta"]
        assert ours.rope_parameters.n_channels == int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if hasattr(theirs, "sliding_window"):
        types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * len(ours.windows)
        assert list(ours.windows) == [theirs.sliding_window if "sliding" in each else None for each in types]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VARIANTS and not name.startswith("gemma3")])
def test_a_missing_key_means_what_it_does_in_transformers(name, transformers):
    config = Fixture(name).config
    model_type = config["model_type"]
    n_read = 0
    for key in config.keys() - {"model_type"}:
        values = {k: value for k, value in config.items() if k != key}
        try:
            ours = ARCHITECTURES[model_type].config_type.from_json(values)
        except ConfigError:
            continue  # a size
        theirs = type(transformers.AutoConfig.for_model(model_type)).from_dict(copy.deepcopy(values))
        assert_same_settings(ours, theirs)
        n_read += 1
    assert n_read > 5
