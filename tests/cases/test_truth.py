"""What rushlight says of a checkpoint is true, and what an author or a caller says is honoured or named."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.float8 import FLOAT8_DTYPES, float8_to_float32
from rushlight.checkpoint.stats import measure
from rushlight.cli import main
from rushlight.porting.scaffold import scaffold

GPT2_CONFIG = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 64, "n_embd": 64, "n_head": 2, "n_layer": 2}
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture
def weights(make_gpt2):
    """A random GPT-2's, under the names of GPT2LMHeadModel."""
    return load_file(make_gpt2("base") / "model.safetensors")


@pytest.fixture
def write(tmp_path):
    """Writes weights, with a GPT-2's config.json unless that is None, into a folder."""

    def write(weights, metadata=None, config=GPT2_CONFIG):
        save_file(
            {name: np.ascontiguousarray(w) for name, w in weights.items()}, tmp_path / "model.safetensors", metadata
        )
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture
def write_raw(tmp_path):
    """Writes a file of tensors given as (dtype, bytes), each of one axis."""
    width = {"BF16": 2, "C64": 8}

    def write(**tensors):
        header, data = {}, b""
        for name, (dtype, raw) in tensors.items():
            shape = [len(raw) // width.get(dtype, 1)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += bytes(raw)
        head = json.dumps(header).encode()
        path = tmp_path / "raw.safetensors"
        path.write_bytes(len(head).to_bytes(8, "little") + head + data)
        return path

    return write


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `rushlight ARGUMENTS` in this process."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


# Flax and TensorFlow


def as_flax(name, weight):
    """As FlaxPreTrainedModel names and turns a tensor of GPT-2."""
    if name.endswith(MATRICES):
        return name.removesuffix("weight") + "kernel", weight.T
    if ".ln_" in name and name.endswith("weight"):
        return name.removesuffix("weight") + "scale", weight
    return name.replace("wte.weight", "wte.embedding").replace("wpe.weight", "wpe.embedding"), weight


def as_tensorflow(name, weight):
    """As TFPreTrainedModel names and shapes a tensor of GPT-2."""
    name = name.replace(".h.0.", "/h_._0/").replace(".h.1.", "/h_._1/").replace(".", "/").replace("h_/_", "h_._")
    if "/ln_" in name:
        name = name.replace("weight", "gamma").replace("bias", "beta")
    elif name.endswith("bias"):
        weight = weight[None]
    return f"{name}:0", weight


FRAMEWORKS = [(as_flax, "flax", "Flax"), (as_tensorflow, "tf", "TensorFlow")]


@pytest.mark.parametrize("config", [GPT2_CONFIG, None])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("convert", "word", "name"), FRAMEWORKS)
def test_another_frameworks_weights_are_named_and_nothing_is_suggested_by_shape(
    write, weights, convert, word, name, declared, config
):
    weights = dict(convert(*item) for item in weights.items())
    report = rushlight.check(write(weights, {"format": word} if declared else None, config))
    (problem,) = [finding for finding in report.findings if finding.is_problem]
    assert problem.cause == "framework"
    assert problem.title.startswith(name)
    assert (f"format: {word}" in problem.why) == declared
    assert "transformers 4" in problem.mend
    assert set(problem.tensors) == set(weights)
    assert (report.saved_by, report.script) == (None, None)


def test_a_port_may_have_the_names_of_flax(write, tmp_path):
    folder = write({"dense.kernel": np.ones((4, 3)), "norm.scale": np.ones(3)}, {"format": "flax"}, None)
    port = tmp_path / "port.py"
    with open_checkpoint(folder) as checkpoint:
        port.write_text(scaffold(checkpoint).module)
    assert rushlight.check(folder, port=port).fits


@pytest.mark.parametrize("metadata", [{"format": "flax"}, {"format": "tf"}, {"format": "pt"}, None])
def test_names_decide_and_not_the_metadata(write, weights, metadata):
    report = rushlight.check(write(weights, metadata))
    assert report.fits
    assert (report.saved_by is None) == (metadata not in ({"format": "pt"}, None))


def test_a_rename_does_not_swap_matrices_of_opposite_orientation(write, weights):
    new = {"attn.c_attn": "attn.c_qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
    renamed = {}
    for name, weight in weights.items():
        stem = next((stem for stem in new if name.endswith(f"{stem}.weight")), None)
        renamed[name.replace(stem, new[stem]) if stem else name] = weight.T if stem else weight
    (problem,) = [f for f in rushlight.check(write(renamed)).findings if f.is_problem]
    details = {each.name.removeprefix("transformer.h.N."): each.detail for each in problem.evidence}
    assert details == {
        "attn.c_qkv.weight": "→ h.N.attn.c_attn.weight, transposed",
        "attn.proj.weight": "→ h.N.attn.c_proj.weight, perhaps transposed",
        "mlp.fc.weight": "→ h.N.mlp.c_fc.weight, transposed",
        "mlp.proj.weight": "→ h.N.mlp.c_proj.weight, transposed",
    }
    assert "transpose them" in problem.mend


def test_biases_under_other_names_are_not_taken_for_none(write, weights):
    weights = {name.replace(".bias", ".offset"): weight for name, weight in weights.items()}
    report = rushlight.check(write(weights))
    assert report.saved_by is None
    assert report.script is None
    assert not any("bias=False" in finding.why for finding in report.findings)


def test_an_advice_names_only_a_flag_that_was_given(write, tmp_path):
    folder = write({"a.weight": np.ones((3, 4), np.float32)})
    (by_config,) = [f for f in rushlight.check(folder).findings if f.title == "another model"]
    assert "--model" not in by_config.mend
    assert "config.json" in by_config.mend
    (by_flag,) = [f for f in rushlight.check(folder, model="gpt2").findings if f.title == "another model"]
    assert "--model" in by_flag.mend
    assert rushlight.check(folder).saved_by is None


# 8-bit floats

FLOAT8_VALUES = {  # ml_dtypes 0.5 and torch 2.13: bits to value
    "F8_E4M3": {0x00: 0.0, 0x01: 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x7E: 448.0, 0xFE: -448.0, 0x7F: np.nan, 0xFF: np.nan},
    "F8_E4M3FNUZ": {0x01: 2**-10, 0x40: 1.0, 0x7F: 240.0, 0xFF: -240.0, 0x80: np.nan},
    "F8_E5M2": {0x01: 2**-16, 0x3C: 1.0, 0x7B: 57344.0, 0x7C: np.inf, 0xFC: -np.inf, 0x7D: np.nan, 0xFF: np.nan},
    "F8_E5M2FNUZ": {0x01: 2**-17, 0x40: 1.0, 0x7F: 57344.0, 0xFF: -57344.0, 0x80: np.nan},
    "F8_E8M0": {0x00: 2**-127, 0x7F: 1.0, 0x80: 2.0, 0xFE: 2.0**127, 0xFF: np.nan},
}  # fmt: skip
N_FINITE = {"F8_E4M3": 254, "F8_E4M3FNUZ": 255, "F8_E5M2": 248, "F8_E5M2FNUZ": 255, "F8_E8M0": 255}


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_float8_values(dtype):
    bits = np.array([*FLOAT8_VALUES[dtype]], np.uint8)
    np.testing.assert_array_equal(float8_to_float32(bits, dtype), np.float32([*FLOAT8_VALUES[dtype].values()]))
    assert np.isfinite(float8_to_float32(np.arange(256, dtype=np.uint8), dtype)).sum() == N_FINITE[dtype]


@pytest.fixture
def float8s(write_raw):
    return write_raw(
        **{
            "a.w": ("F8_E4M3", [0x7F, 0x38, 0x38, 0x38]),
            "b.w": ("F8_E5M2", [0x7C, 0x3C, 0x00, 0x00]),
            "c.w": ("F8_E8M0", [0x7F, 0x80]),
            "d.w": ("BF16", b"\x80\x7f\xc0\x7f"),
            "e.w": ("C64", np.array([np.nan, 1], np.complex64).tobytes()),
        }
    )


def test_statistics_of_float8(float8s):
    with open_checkpoint(float8s) as checkpoint:
        stats = measure(checkpoint.values())
    found = {name: (s.min, s.max, s.mean, s.n_nan, s.n_inf) for name, s in stats.items()}
    assert found == {
        "a.w": (1, 1, 1, 1, 0),
        "b.w": (0, 1, 1 / 3, 0, 1),
        "c.w": (1, 2, 1.5, 0, 0),
        "d.w": (None, None, None, 1, 1),
    }


def test_what_is_not_read_is_said_to_be_unread(float8s, run):
    report = json.loads(run("inspect", float8s, "--stats", "--json").out)
    assert report["unread"] == ["e.w"]
    assert [tensor["stats"] is None for tensor in report["tensors"]] == [False] * 4 + [True]
    page = float8s.with_suffix(".html")
    lines = run("inspect", float8s, "--stats", "--html", page).out
    assert not lines
    lines = run("inspect", float8s, "--stats").out.splitlines()
    assert ["not read" in line for line in lines if ".w" in line] == [False] * 4 + [True]
    assert "not read" in page.read_text()


def test_nan_in_float8_is_found_and_what_is_not_read_is_noted(float8s):
    findings = rushlight.check(float8s).findings
    (broken,) = [finding for finding in findings if finding.cause == "values"]
    assert [(each.name, each.detail) for each in broken.evidence] == [
        ("a.w", "1 NaN, 0 Inf"),
        ("b.w", "0 NaN, 1 Inf"),
        ("d.w", "1 NaN, 1 Inf"),
    ]
    (unread,) = [finding for finding in findings if finding.title == "values that were not read"]
    assert (unread.is_problem, unread.tensors) == (False, ("e.w",))
