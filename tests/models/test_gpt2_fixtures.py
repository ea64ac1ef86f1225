"""GPT-2 compared with PyTorch and transformers, as recorded by tests/fixtures/make_gpt2_fixtures.py."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import rushlight
from rushlight.models.gpt2 import MLP, Attention, Block
from rushlight.nn import Conv1D, Embedding, LayerNorm


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_logits(recording, dtype):
    model = rushlight.load(recording.folder, dtype=dtype)
    assert model.dtype == dtype
    assert recording.error(model) < recording.tolerance[dtype]


def test_logits_are_float32_unless_asked_otherwise(recording):
    model = rushlight.load(recording.folder)
    assert model.dtype in ("f32", "f16", "bf16")  # the dtype of the weights
    assert model.logits(recording.prompt_ids).dtype == np.float32


def test_greedy_over_200_steps(recording):
    model = rushlight.load(recording.folder, dtype="f32")  # the recorded greedy path
    result = model.generate(recording.prompt_ids, max_tokens=200, ignore_eos=True)
    assert result.ids == recording.greedy_ids
    assert result.finish_reason == "length"


def test_greedy_ends_at_the_end_of_text_token(recording):
    eos = recording.config["eos_token_id"]
    result = rushlight.load(recording.folder).generate(recording.prompt_ids, max_tokens=200)
    assert result.ids == recording.greedy_ids[: recording.greedy_ids.index(eos)]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("recording", ["mask_buffers"], indirect=True)
def test_greedy_ends_at_the_context_length(recording):
    model = rushlight.load(recording.folder)
    assert len(recording.ids) == model.context_length
    result = model.generate(recording.prompt_ids, max_tokens=1000, ignore_eos=True)
    assert result.ids == recording.greedy_ids
    assert result.finish_reason == "context"


@pytest.mark.parametrize("recording", ["gelu_new"], indirect=True)
def test_each_module(recording, monkeypatch):
    """If the logits are wrong, this test names the first module that is."""
    model = rushlight.load(recording.folder)
    path_of = {id(module): path for path, module in model.module.named_modules()}
    outputs = {}

    def kept(call):
        def call_and_keep(self, *args):
            outputs[path_of[id(self)]] = output = call(self, *args)
            return output

        return call_and_keep

    for kind in (Embedding, LayerNorm, Conv1D, Attention, MLP, Block):
        monkeypatch.setattr(kind, "__call__", kept(kind.__call__))
    model.logits(recording.prompt_ids)

    assert outputs.keys() == recording.modules.keys()
    limits = {path: recording.tolerance["f32"] * np.abs(x).max() for path, x in recording.modules.items()}
    wrong = [path for path, x in outputs.items() if np.abs(x - recording.modules[path]).max() > limits[path]]
    assert wrong == []


def test_the_recordings_are_up_to_date_with_their_script():
    folder = Path(__file__).parents[1] / "fixtures"
    recorded = json.loads((folder / "gpt2" / "recorded.json").read_text())
    script = (folder / "make_gpt2_fixtures.py").read_text(encoding="utf-8")
    assert recorded["script_sha256"] == hashlib.sha256(script.encode()).hexdigest(), "run the script again"
