"""examples/codegen, an architecture in a single user file, compared with transformers (make_codegen_fixture.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import rushlight
from rushlight.backends.reference import ReferenceBackend
from rushlight.errors import ConfigError

PORT = Path(__file__).parents[2] / "examples" / "codegen" / "codegen.py"
FOLDER = Path(__file__).parent / "codegen"
TOLERANCES = {"f32": 2e-6, "f64": 1e-7}
"""Relative to the largest logit; transformers computes angles and softmax in float32 in both."""


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


def exchanged(*order):
    """The parts of the fused projection in another order."""

    def split(self, x, sizes, *, groups):
        parts = original(self, x, sizes, groups=groups)
        return [parts[i] for i in order]

    original = ReferenceBackend.split
    return split


def not_sharded(self, x, sizes, *, groups, original=ReferenceBackend.split):
    return original(self, x, sizes)


def other_pairs(self, x, angles, n_head, *, interleaved, original=ReferenceBackend.rotary):
    return original(self, x, angles, n_head, interleaved=not interleaved)


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("split", exchanged(0, 2, 1)),
        ("split", exchanged(2, 1, 0)),
        ("split", not_sharded),
        ("rotary", other_pairs),
        ("rotary", lambda self, x, *_, **__: x),
    ],
)
def test_a_wrong_port_differs(expected, operation, wrong, monkeypatch):
    """Common mistakes in CodeGen: the order of queries, values and keys, the shards, the pairs of channels."""
    monkeypatch.setattr(ReferenceBackend, operation, wrong)
    assert error(load(device="reference"), expected) > 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [("add_cross_attention", True), ("hidden_size", 9), ("n_head", 7), ("rope_scaling", {"factor": 2})],
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
