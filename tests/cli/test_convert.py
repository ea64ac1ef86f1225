"""`rushlight convert`, and the commands that open what it writes."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rushlight import demo

pytest.importorskip("rushlight.backends._native")

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROMPT = "Once upon a time"


@pytest.fixture
def converted(rushlight, tmp_path):
    """The embedded model in int4, written by the command."""
    folder = tmp_path / "packed"
    done = rushlight("convert", "tales", "-o", folder, "--dtype", "int4")
    assert (done.code, done.out, done.err) == (0, "", f"wrote {folder}: int4, 6.8 MiB to 2.2 MiB\n")
    return folder


def test_generate_has_the_same_output(rushlight, converted):
    expected = rushlight("generate", "tales", "--dtype", "int4", "-p", PROMPT, "-n", "20")
    for options in ([], ["--copy"], ["--dtype", "int4"]):
        assert rushlight("generate", converted, "-p", PROMPT, "-n", "20", *options) == expected


def test_the_original_command_line_takes_a_converted_folder(rushlight, converted):
    done = rushlight("--model-path", converted, "--device", "cpu", "--prompt", PROMPT)
    assert done.code == 0
    assert done.out.startswith("Model loaded successfully!\n" + PROMPT)


def test_chat_answers(rushlight, converted):
    done = rushlight("chat", converted, "-n", "3", stdin=b"Hello\n")
    assert (done.code, bool(done.out.strip())) == (0, True)


def test_inspect_shows_what_it_is(rushlight, converted):
    done = rushlight("inspect", converted)
    assert done.code == 0
    assert "3,554,304 parameters" in done.out
    assert "INT4" in done.out
    assert "format: rushlight" in done.out
    assert "rushlight.dtype: int4" in done.out
    assert "rushlight.tensors" not in done.out
    found = json.loads(rushlight("inspect", converted, "--stats", "--json").out)
    assert (found["n_parameters"], found["memory"]["stored"]) == (3554304, "int4")
    assert {tensor["dtype"] for tensor in found["tensors"]} == {"INT4", "INT6", "F32"}
    assert found["unread"] == []
    source = json.loads(rushlight("inspect", demo.folder(), "--stats", "--json").out)
    expected = {tensor["name"]: tensor["stats"]["std"] for tensor in source["tensors"]}
    assert {tensor["name"]: tensor["stats"]["std"] for tensor in found["tensors"]} == pytest.approx(expected, rel=0.02)


def test_inspect_writes_the_page(rushlight, converted, tmp_path):
    assert rushlight("inspect", converted, "--html", tmp_path / "tree.html").code == 0
    page = (tmp_path / "tree.html").read_text()
    assert "INT6" in page
    assert "rushlight.tensors" not in page


def test_check_finds_that_it_fits(rushlight, converted):
    done = rushlight("check", converted)
    assert done.code == 0
    assert done.out.endswith("fits\n")
    assert "several dtypes" not in done.out


def test_verify_compares_within_the_tolerance_of_the_format(rushlight, tmp_path):
    source, golden = FIXTURES / "gpt2" / "gelu_new", FIXTURES / "proof" / "gpt2.golden.safetensors"
    for dtype, compared in [("f32", True), ("bf16", False), ("int4", False)]:
        assert rushlight("convert", source, "-o", tmp_path / dtype, "--dtype", dtype).code == 0
        for device in ("cpu", "reference"):
            done = rushlight("verify", tmp_path / dtype, "--golden", golden, "--device", device)
            assert done.code == 0, done.out
            assert ("the weights were not compared" not in done.err) == compared


def test_verify_does_not_replace_a_dtype_that_is_asked_for(rushlight, tmp_path):
    source, golden = FIXTURES / "gpt2" / "gelu_new", FIXTURES / "proof" / "gpt2.golden.safetensors"
    assert rushlight("convert", source, "-o", tmp_path / "int4", "--dtype", "int4").code == 0
    done = rushlight("verify", tmp_path / "int4", "--golden", golden, "--dtype", "f32", "--device", "cpu")
    assert done.code == 2
    assert "converted to int4, and not rounded again to f32" in done.err


@pytest.mark.parametrize("command", ["lens", "eval", "bench"])
def test_other_commands_run(rushlight, converted, tmp_path, command):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a king. " * 5)
    arguments = {
        "lens": ["-p", PROMPT],
        "eval": ["--text", text],
        "bench": ["--prompt-tokens", "8", "--tokens", "2", "--batch", "1", "--repeats", "1", "--json"],
    }[command]
    done = rushlight(command, converted, *arguments)
    assert done.code == 0, done.err


def test_batch_runs(rushlight, converted, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    done = rushlight("batch", prompts, "-m", converted, "-o", tmp_path / "out.jsonl", "-n", "4")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tales", "--dtype", "q4"], "error: cannot convert to dtype 'q4'; did you mean int4? use one of: f32, f16"),
        (["tales", "--dtype", "auto"], "error: cannot convert to dtype 'auto'; use one of"),
        (["./missing", "--dtype", "int8"], "error: missing: no such file or folder"),
        (["tales"], "--dtype"),
        (["--dtype", "int8"], "no model given"),
    ],
)
def test_bad_input_is_one_message(rushlight, tmp_path, arguments, message):
    done = rushlight("convert", *arguments, "-o", tmp_path / "new")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "new").exists()


def test_a_gguf_is_refused_by_name(rushlight, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(100))
    done = rushlight("convert", file, "-o", tmp_path / "new", "--dtype", "int8")
    assert done.code == 2
    assert "GGUF" in done.err


def test_a_converted_source_and_a_used_folder_are_refused(rushlight, converted, tmp_path):
    done = rushlight("convert", converted, "-o", tmp_path / "new", "--dtype", "int8")
    assert (done.code, "already converted, to int4" in done.err) == (2, True)
    done = rushlight("convert", "tales", "-o", converted, "--dtype", "int8")
    assert (done.code, "use --force to replace it" in done.err) == (2, True)
    assert rushlight("convert", "tales", "-o", converted, "--dtype", "int8", "--force").code == 0


def test_another_dtype_is_refused(rushlight, converted):
    done = rushlight("generate", converted, "--dtype", "int8", "-p", PROMPT)
    assert (done.code, done.out) == (2, "")
    assert "convert the original: `rushlight convert SOURCE -o FOLDER --dtype int8`" in done.err


PROGRAM = """
import sys, time
import rushlight.loading.convert as convert
from rushlight.cli import main

pieces = convert._Job._pieces
def slow(self, name, *arguments):
    time.sleep(0.05)
    return pieces(self, name, *arguments)
convert._Job._pieces = slow
main(["convert", "tales", "-o", sys.argv[1], "--dtype", "int8"])
"""


def test_an_interrupt_leaves_nothing_and_the_bar_shows_the_progress(tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "new"], stderr=terminal, stdout=terminal)
    os.close(terminal)
    shown, deadline = "", time.monotonic() + 30
    while "converting to int8" not in shown or "h." not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([controller], [], [], 1)[0]:
            shown += os.read(controller, 4096).decode(errors="replace")
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".new."]
    process.send_signal(signal.SIGINT)
    while True:
        try:
            if not os.read(controller, 4096):
                break
        except OSError:  # the terminal is closed
            break
    os.close(controller)
    assert process.wait() == 130
    assert not list(tmp_path.iterdir())
