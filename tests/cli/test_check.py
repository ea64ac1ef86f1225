"""`rushlight check`: exit codes, the report and the JSON."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight as package
from rushlight import demo
from rushlight.checkpoint import Tensor

SHAPES = {"wte.weight": (50, 64), "wpe.weight": (16, 64), "ln_f.weight": (64,), "ln_f.bias": (64,)}
for i in range(2):
    SHAPES |= {f"h.{i}.{norm}.{part}": (64,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    SHAPES |= {f"h.{i}.attn.c_attn.weight": (64, 192), f"h.{i}.attn.c_attn.bias": (192,)}
    SHAPES |= {f"h.{i}.attn.c_proj.weight": (64, 64), f"h.{i}.attn.c_proj.bias": (64,)}
    SHAPES |= {f"h.{i}.mlp.c_fc.weight": (64, 256), f"h.{i}.mlp.c_fc.bias": (256,)}
    SHAPES |= {f"h.{i}.mlp.c_proj.weight": (256, 64), f"h.{i}.mlp.c_proj.bias": (64,)}
NOTES = 3
"""Without config.json, without a tokenizer, and with square weights."""


@pytest.fixture
def write(tmp_path):
    """Writes a GPT-2 with two narrow blocks, modified by `rename` and `change`, and returns its path."""

    def write(rename=lambda name: name, change=lambda name, tensor: tensor):
        tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
        path = tmp_path / "model.safetensors"
        save_file({rename(name): change(name, tensor).copy(order="C") for name, tensor in tensors.items()}, path)
        return path

    return write


def transposed_blocks(name, tensor):
    return tensor.T if tensor.ndim == 2 and name.startswith("h.") else tensor


@pytest.fixture
def compiled(write):
    """nanoGPT's weights in a compiled model: two causes at once."""
    return write(lambda name: f"_orig_mod.transformer.{name}", transposed_blocks)


def test_a_checkpoint_that_fits(rushlight, write):
    done = rushlight("check", write())
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1:3] == [
        "compared with gpt2 (n_layer 2, n_embd 64, n_head 1)",
        "saved by transformers, GPT2Model: names without a prefix, as openai-community/gpt2 has them",
    ]
    assert done.out.splitlines()[-1] == "fits"
    assert done.out.count("note: ") == NOTES
    assert "problem" not in done.out


def test_the_report_of_a_checkpoint_that_does_not_fit(rushlight, compiled, monkeypatch):
    done = rushlight("check", compiled, "--no-data")
    assert (done.code, done.err) == (1, "")
    head, problems = done.out.split("\n\n", 1)
    assert head.splitlines()[2] == "saved by nanoGPT"
    assert problems.startswith(
        """\
problem: names with _orig_mod.
  torch.compile adds it to the names of the modules that it wraps.
    _orig_mod.transformer.h.N.attn.c_attn.bias ×2    → transformer.h.N.attn.c_attn.bias
    _orig_mod.transformer.h.N.attn.c_attn.weight ×2  → transformer.h.N.attn.c_attn.weight
"""
    )
    assert "    and 8 more: --json lists all\n" in problems
    assert (
        """\
    _orig_mod.transformer.h.N.attn.c_attn.weight ×2  code (64, 192), file (192, 64)
    _orig_mod.transformer.h.N.mlp.c_fc.weight ×2     code (64, 256), file (256, 64)
    _orig_mod.transformer.h.N.mlp.c_proj.weight ×2   code (256, 64), file (64, 256)
    _orig_mod.transformer.h.N.attn.c_proj.weight ×2  (64, 64), square
"""
        in problems
    )
    assert "\ndoes not fit: 2 problems\n" in problems


def test_the_printed_script_fixes_the_checkpoint(rushlight, compiled, monkeypatch):
    done = rushlight("check", compiled)
    script = re.sub("^    ", "", done.out.partition("(pip install safetensors):\n\n")[2], flags=re.MULTILINE)
    monkeypatch.chdir(compiled.parent)
    exec(script, {})
    assert rushlight("check", "fixed.safetensors").code == 0
    assert load_file("fixed.safetensors")["transformer.h.1.mlp.c_fc.weight"].shape == (64, 256)


def test_json_has_every_tensor(rushlight, compiled):
    done = rushlight("check", compiled, "--json")
    assert (done.code, done.err) == (1, "")
    record = json.loads(done.out)
    assert record["fits"] is False
    assert record["saved_by"] == "nanoGPT"
    assert record["data"] == "read"
    prefix, transposed, *notes = record["findings"]
    assert (prefix["cause"], prefix["is_problem"], len(prefix["tensors"])) == ("prefix", True, len(SHAPES))
    assert transposed["evidence"][0] == {
        "name": "_orig_mod.transformer.h.N.attn.c_attn.weight",
        "detail": "code (64, 192), file (192, 64)",
        "n_tensors": 2,
    }
    assert not any(note["is_problem"] for note in notes)
    assert "removeprefix" in record["script"] or "_orig_mod" in record["script"]


def test_the_command_and_the_python_function_agree(rushlight):
    done = rushlight("check", demo.folder(), "--json")
    assert done.code == 0
    assert json.loads(done.out) == json.loads(json.dumps(package.check(demo.folder()).to_json()))


@pytest.mark.parametrize("width", [40, 80])
def test_prose_is_wrapped_to_a_terminal_and_names_are_not(rushlight, compiled, monkeypatch, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = rushlight("check", compiled).out.splitlines()
    prose = [line for line in lines if re.match(r"  \w", line)]
    assert prose
    assert max(map(len, prose)) <= width
    assert any("_orig_mod.transformer.h.N.attn.c_attn.weight ×2" in line for line in lines)


def test_only_terminals_get_colours(process, write):
    path = write()
    assert "\x1b" not in process(f"$rushlight check {path} | cat").out
    shown = process(f"script -qec '$rushlight check {path}' /dev/null", env={"TERM": "xterm-256color"}).out
    assert "\x1b[1;32mfits" in shown


def test_control_characters_in_names_are_escaped(rushlight, write):
    done = rushlight("check", write(lambda name: f"\x1b[2J\n{name}"))
    assert done.code == 1
    assert "\x1b" not in done.out


def test_no_data_reads_no_values(rushlight, write, monkeypatch):
    nan = write(change=lambda name, tensor: tensor * np.nan if name == "ln_f.bias" else tensor)
    done = rushlight("check", nan)
    assert done.code == 1
    assert "    ln_f.bias  64 NaN, 0 Inf\n" in done.out
    monkeypatch.setattr(Tensor, "read_into", lambda *args: pytest.fail("read"))
    done = rushlight("check", nan, "--no-data")
    assert done.code == 0
    assert "the values were not checked" in done.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["./nothing.safetensors"], "no such file"),
        (["{path}", "--architecture", "gpt3"], "no architecture 'gpt3' (expected gptj, gpt2)"),
        (
            ["{path}", "--architecture", "mixtral"],
            "mixtral is a mixture-of-experts model, which rushlight does not run",
        ),
        (["{path}", "--port", "no.py"], "no.py: no such file"),
        (["{path}", "--port", "no.py", "-a", "gpt2"], "both an architecture, gpt2, and a port"),
        ([], "SOURCE"),
    ],
)
def test_bad_input_exits_with_2(rushlight, write, arguments, expected):
    path = write()
    done = rushlight("check", *(argument.format(path=path) for argument in arguments))
    assert (done.code, done.out) == (2, "")
    assert expected in done.err


def test_an_invalid_file_exits_with_2(rushlight, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert rushlight("check", tmp_path).code == 2


def test_an_unknown_model_suggests_port(rushlight, tmp_path):
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    done = rushlight("check", tmp_path)
    assert done.code == 1
    assert "Llama family" in done.out
    assert "rushlight port" in done.out
