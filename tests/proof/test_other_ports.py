"""Verifying an encoder with GLUs and convolutions, whose arrays are (C, N) in PyTorch."""

from pathlib import Path

import numpy as np
import pytest

import rushlight
from rushlight.nn import Activation, Convolution, Module
from rushlight.proof import verify
from rushlight.proof.diagnosis.causes import why_output
from rushlight.proof.diagnosis.trial import ITS_INPUT, Source, Trial

FOLDER = Path(__file__).parents[1] / "fixtures" / "proof"
SOURCE, PORT, GOLDEN = (FOLDER / name for name in ("encoder.safetensors", "encoder.py", "encoder.golden.safetensors"))


@pytest.fixture(params=["cpu", "reference"])
def encoder(request):
    return rushlight.load_module(SOURCE, port=PORT, device=request.param)


def first(encoder):
    report = verify(encoder, GOLDEN)
    assert not report.passed
    assert report.first is not None
    return report.first.path, report.first.cause


def put(encoder, path, child):
    parent, _, name = path.rpartition(".")
    child.ops = encoder.ops
    dict(encoder.named_modules())[parent].set_child(name, child)


def test_a_correct_port_passes(encoder):
    report = verify(encoder, GOLDEN)
    assert report.failures == []
    assert report.passed
    assert report.first is None
    assert report.logits is None
    # 12 tokens and 12 channels: only the values show whether the convolution's array is (C, T) or (T, C).
    assert report.prompts == [12, 3]
    assert {result.status for result in report.modules} == {"equal"}
    assert [result.path for result in report.modules][:6] == [
        "embed",
        "blocks.0.norm",
        "blocks.0.conv",
        "blocks.0.fc",
        "blocks.0.glu",
        "blocks.0.proj",
    ]
    assert report.notes == ["the weights were not compared with the recorded ones"]


def test_a_shifted_convolution_window_is_identified(encoder):
    conv = encoder.blocks[0].conv
    wrong = Convolution(12, 12, 3, before=2)
    wrong.weight, wrong.bias = conv.weight, conv.bias
    put(encoder, "blocks.0.conv", wrong)
    assert first(encoder) == (
        "blocks.0.conv",
        "its window begins 1 row earlier than the recorded one; check `before`",
    )


def test_another_activation_of_the_gate_is_identified(encoder):
    put(encoder, "blocks.1.glu.gate", Activation("tanh"))
    assert first(encoder) == (
        "blocks.1.glu",
        "it computes the first half of its input times tanh of the second half of its input where the recording has"
        " the first half of its input times sigmoid of the second half of its input",
    )


def rewrite(module, call):
    module.__class__ = type(type(module).__name__, (type(module),), {"__call__": call})


def test_swapped_halves_of_a_glu_are_identified(encoder):
    def call(self, x):
        a, b = self.ops.split(x, 2)
        return b * self.gate(a)

    rewrite(encoder.blocks[0].glu, call)
    path, cause = first(encoder)
    assert path == "blocks.0.glu"
    assert cause.startswith(
        "it computes the second half of its input times sigmoid of the first half of its input where"
    )


def test_a_missing_residual_is_identified(encoder):
    rewrite(encoder.blocks[0], lambda self, x, batch: self.proj(self.glu(self.fc(self.conv(self.norm(x), batch)))))
    assert first(encoder) == ("blocks.0", "it computes proj where the recording has its input + proj")


def test_a_missing_bias_of_a_convolution_is_identified(encoder):
    encoder.blocks[1].conv.bias = None
    path, cause = first(encoder)
    assert path == "blocks.1.conv"
    assert cause.startswith("the bias is missing")


def test_swapped_layers_of_the_same_shape_are_located(encoder):
    one, other = encoder.blocks
    one.proj, other.proj = other.proj, one.proj
    path, _ = first(encoder)
    assert path == "blocks.0.proj"


def test_a_product_that_is_added_to_the_stream():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 8))
    a, b = np.split(y, 2, axis=-1)
    right, wrong = x + a / (1 + np.exp(-b)), x + b / (1 + np.exp(-a))
    trial = Trial(wrong, right, [Source(ITS_INPUT, x), Source("conv", y)], [], 1e-5)
    assert why_output(Module(), x, trial) == (
        "it computes its input + the second half of conv times sigmoid of the first half of conv where the recording"
        " has its input + the first half of conv times sigmoid of the second half of conv: gate and up are exchanged"
    )


def test_formulas_are_tried_on_the_first_rows_of_large_arrays(monkeypatch):
    monkeypatch.setattr("rushlight.proof.diagnosis.formulas.MAX_VALUES", 32)
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    trial = Trial(x + other, x + 0.5 * other, [Source(ITS_INPUT, x), Source("proj", other)], [], 1e-5)
    assert len(trial.first_rows(8).sources[0].values) == 8
    assert why_output(Module(), x, trial) == (
        "it computes its input + proj where the recording has its input + 0.5 × proj: a factor of 0.5 is missing"
    )
