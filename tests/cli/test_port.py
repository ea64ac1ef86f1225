"""`rushlight port`, and `--port` of the commands that run a model."""

import json

import numpy as np
import pytest
from architecture_fixtures import Fixture
from safetensors.numpy import save_file

import rushlight as package
from rushlight import demo

PROMPT = "Once upon a time"


@pytest.fixture
def port(rushlight, tmp_path):
    """The embedded model's port, written by the command."""
    path = tmp_path / "my_model.py"
    done = rushlight("port", demo.folder(), "-o", path)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"wrote {path} and {path.with_name('test_my_model.py')}\n"
    return path


def test_a_port_generates_the_same_output_as_the_embedded_model(rushlight, port):
    done = rushlight("generate", demo.folder(), "--port", port, "-p", PROMPT, "-n", "20")
    assert (done.code, done.err) == (0, "")
    assert done.out == PROMPT + package.load().generate(PROMPT, max_tokens=20).text + "\n"


def test_bench_runs_the_port(rushlight, port):
    arguments = ["--prompt-tokens", "8", "--tokens", "2", "--batch", "1", "--repeats", "1", "--json"]
    done = rushlight("bench", demo.folder(), "--port", port, *arguments)
    assert done.code == 0
    assert json.loads(done.out)["config"]["port"] == str(port)


def test_check_compares_a_checkpoint_with_the_port(rushlight, port):
    assert rushlight("check", demo.folder(), "--port", port).code == 0
    port.write_text(port.read_text().replace("LayerNorm(config.n_embd,", "LayerNorm(config.n_embd + 1,"))
    done = rushlight("check", demo.folder(), "--port", port)
    assert done.code == 1
    assert "tensors of the wrong shape" in done.out


def test_existing_files_are_not_overwritten(rushlight, port):
    port.write_text("mine")
    done = rushlight("port", demo.folder(), "-o", port)
    assert (done.code, port.read_text()) == (2, "mine")
    assert "--force" in done.err
    port.unlink()
    done = rushlight("port", demo.folder(), "-o", port)
    assert done.code == 2
    assert "refusing to overwrite" in done.err
    assert not port.exists()
    assert rushlight("port", demo.folder(), "-o", port, "--force").code == 0
    assert sorted(path.name for path in port.parent.iterdir()) == ["my_model.py", "test_my_model.py"]


def test_the_port_can_be_printed(rushlight, port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = rushlight("port", demo.folder(), "-o", "-")
    assert (done.code, done.err) == (0, "")
    assert done.out == port.read_text()


def test_an_unwritten_forward_is_reported_and_raises(rushlight, tmp_path):
    save_file({"norm.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    path = tmp_path / "my_model.py"
    done = rushlight("port", tmp_path, "-o", path)
    assert done.code == 0
    assert done.err.endswith("now write the forward of: Model\n")
    done = rushlight("generate", tmp_path, "--port", path, "-p", "x")
    assert done.code == 2
    assert "not a language model" in done.err


def test_what_a_whole_port_assumes_is_listed(rushlight, tmp_path):
    fixture = Fixture("llama")
    fixture.config |= {"model_type": "newcomer", "strange_scale": 2.0}
    folder, path = fixture.write(tmp_path / "newcomer"), tmp_path / "my_model.py"
    done = rushlight("port", folder, "-o", path)
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines[1] == "to check, in the lines marked Assumed:"
    assert "  rotary embedding of every layer, of channel pairs (i, i + r/2)" in lines
    assert "  these keys of config.json change nothing: strange_scale" in lines
    assert lines[-1].endswith(f"--port {path} --golden golden.safetensors` names what differs")
    assert len(lines) == 3 + path.read_text().count("# Assumed:")
    assert rushlight("check", folder, "--port", path).code == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x = block(x, batch)", "x = blok(x, batch)", "raises NameError: name 'blok' is not defined"),
        ("self.h = ", "self.h = config.n_block or ", "raises AttributeError: 'GPT2Config' object has no attribute"),
        ("class GPT2(PretrainedModel):", "class GPT2(PretrainedModel:", "is not Python"),
        ("ARCHITECTURE = GPT2", "", "ARCHITECTURE is not defined"),
    ],
)
def test_an_error_in_the_file_names_its_line(rushlight, port, old, new, message):
    text = port.read_text()
    line = text[: text.index(old)].count("\n") + 1
    port.write_text(text.replace(old, new))
    done = rushlight("generate", demo.folder(), "--port", port, "-p", PROMPT)
    assert done.code == 2
    assert message in done.err
    assert f"line {line} " in done.err or "not defined" in message
    assert "defect" not in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in rushlight("generate", demo.folder(), "--port", port, "-p", PROMPT, "--debug").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["port", "./nothing", "-o", "x.py"], "no such file"),
        (["port", str(demo.folder()), "-o", "model.txt"], "output must end in .py"),
        (["port", str(demo.folder())], "--output"),
        (["generate", str(demo.folder()), "--port", "x.py", "-p", "x"], "x.py: no such file"),
    ],
)
def test_wrong_usage_exits_with_2(rushlight, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = rushlight(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_not_built_in_is_named(rushlight, tmp_path):
    tensors = {"encoder.layer.0.attention.self.query.weight": np.ones((4, 4), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    done = rushlight("port", tmp_path, "-o", tmp_path / "my_bert.py")
    assert done.code == 0
    assert done.err.startswith("note: bert is an encoder, which does not generate text\nwrote ")
