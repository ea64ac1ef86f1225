"""The first commands of a newcomer, their output, and a first port."""

import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight

PREFIXES = '        prefixes=("transformer.",),\n'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs rushlight in an empty folder; returns its exit code and its output."""
    monkeypatch.chdir(tmp_path)

    def rushlight_in_folder(*arguments, stdin=""):
        done = subprocess.run(
            [sys.executable, "-m", "rushlight", *map(str, arguments)], input=stdin, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return rushlight_in_folder


class TestModelAndPrompt:
    """Users of llm are used to `llm -m MODEL PROMPT`."""

    @pytest.mark.parametrize("arguments", [["-m", "tales", "Once"], ["tales", "Once"], ["-m", "tales", "-p", "Once"]])
    def test_a_prompt_argument_next_to_the_model_flag(self, run, arguments):
        assert run("generate", *arguments, "-n", "2") == (0, "Once, I\n", "")

    def test_a_prompt_that_equals_the_model_name(self, run):
        assert run("generate", "-m", "tales", "tales", "-n", "0")[:2] == (0, "tales\n")

    def test_standard_input(self, run):
        assert run("generate", "-m", "tales", "-n", "2", stdin="Once\n")[:2] == (0, "Once, I\n")

    @pytest.mark.parametrize("rest", [["Once", "-p", "x"], ["Once", "x"]])
    def test_two_models(self, run, rest):
        code, out, err = run("generate", "-m", "tales", *rest)
        assert (code, out) == (2, "")
        assert "expected one model, found 'tales' and SOURCE 'Once'" in err


def test_a_recording_with_prefixed_names_verifies_a_port_without_the_prefix(run):
    """The embedded model's tensor names have no prefix; those of the recorded GPT2LMHeadModel have one."""
    assert run("port", "tales", "-o", "port.py")[0] == 0
    port = rushlight.load("tales", port="port.py")
    assert port.module.rules.canonical("transformer.h.0.mlp.act") == "h.0.mlp.act"


def test_a_port_next_to_other_heads_is_complete(run, make_gpt2):
    folder = make_gpt2()
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"v_head.summary.weight": np.ones((1, 64), np.float32)}, path)
    code, _, err = run("port", folder, "-o", "port.py")
    assert (code, err) == (0, "wrote port.py and test_port.py\n")
    texts = [rushlight.load(folder, port=port).generate("a", max_tokens=3).ids for port in ("port.py", None)]
    assert texts[0] == texts[1]


def test_a_note_is_shown_once(run, make_gpt2):
    """`verify` opens a checkpoint twice."""
    folder = make_gpt2(vocab_size=50257, n_positions=1024, files={"config.json": None, "tokenizer.json": None})
    _, _, err = run("verify", folder)
    assert err.count("no config.json") == 1


def test_the_embedded_model_has_its_name(run):
    code, _, err = run("verify")
    assert (code, "nothing to compare tales with" in err) == (2, True)


def test_a_command_to_copy_is_on_its_own_line(run, make_gpt2):
    folder = make_gpt2(files={"vocab.json": None, "merges.txt": None, "tokenizer.model": "\n"})
    _, out, _ = run("check", folder, "--json")
    assert re.search(r"`python -c .* \S*m`", out)


def test_a_name_that_is_neither_a_path_nor_cached(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    code, _, err = run("generate", "my-model", "Once", "--offline")
    assert code == 2
    assert err.startswith(
        "error: no path my-model exists, the cache does not have the complete model, and the network is disabled"
    )
