"""examples/opt, an architecture in a single user file, compared with transformers (make_opt_fixture.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import rushlight
from rushlight.errors import ConfigError

PORT = Path(__file__).parents[2] / "examples" / "opt" / "opt.py"
FOLDER = Path(__file__).parent / "opt"
TOLERANCES = {"f32": 2e-6, "f64": 1e-14}
"""Relative to the largest logit; observed: 3.2e-7 and 7e-16."""


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


def load(source=FOLDER, **options):
    return rushlight.load(source, port=PORT, **options)


def error(model, expected):
    logits = expected["logits_f64" if model.dtype == "f64" else "logits_f32"]
    return np.abs(model.logits(expected["prompt_ids"].tolist()) - logits).max() / np.abs(logits).max()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_logits_equal_those_of_transformers(expected, dtype):
    assert error(load(dtype=dtype), expected) <= TOLERANCES[dtype]


def test_greedy_tokens_equal_those_of_transformers(expected):
    found = load().generate(expected["prompt_ids"].tolist(), max_tokens=60, ignore_eos=True)
    assert found.ids == expected["greedy_ids"].tolist()


def test_a_wrong_port_differs(expected, monkeypatch):
    """Common mistakes in OPT: positions counted from 0 or 1, the wrong scale, queries and keys exchanged."""
    model = load()
    layers = model.module.decoder.layers
    first = layers[0].self_attn
    for wrong in (
        {"q_proj": first.k_proj, "k_proj": first.q_proj},
        {"scale": 1.0},
        {"scale": first.scale / 2},
    ):
        with monkeypatch.context() as patch:
            for name, value in wrong.items():
                patch.setattr(first, name, value)
            assert error(model, expected) > 1e-4
    embed = model.module.decoder.embed_positions
    for first_row in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(embed, "first_row", first_row)
            assert error(model, expected) > 1e-4
    assert error(model, expected) <= TOLERANCES["f32"]


@pytest.mark.parametrize(
    ("key", "value"), [("do_layer_norm_before", False), ("word_embed_proj_dim", 9), ("num_attention_heads", 4)]
)
def test_unsupported_arithmetic_is_refused(tmp_path, key, value):
    config = json.loads((FOLDER / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=key):
        load(tmp_path)


def test_without_its_config_it_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"put the model's config\.json next to"):
        load(tmp_path)
