"""The commands of docs/walks.md run, on small models in place of the hub's."""

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from architecture_fixtures import Fixture, weight
from hub_server import hub  # noqa: F401 (a fixture)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rushlight.checkpoint.short_names import SHORT_NAMES
from rushlight.cli import main

WALKS = Path(__file__).parent.parent.parent / "docs" / "walks.md"
SECTIONS = {"Llama": "llama", "Qwen 3": "qwen3", "Gemma 3": "gemma3_text", "GPT-NeoX": "gpt_neox"}
"""The title of a walk, and the model type of its models."""
N_TOKENS = 260
TEMPLATE = "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>{% endfor %}<|im_start|>"


def commands(title):
    """The commands of a walk."""
    text = WALKS.read_text(encoding="utf-8")
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\$ (.*)", section[1], re.MULTILINE)


def small_model(model_type):
    """The files of a checkpoint with random weights, and a tokenizer with a token for each byte."""
    fixture = Fixture(model_type)
    n_before = fixture.config["vocab_size"]
    fixture.config |= {"vocab_size": N_TOKENS, "eos_token_id": N_TOKENS - 1, "bos_token_id": None, "pad_token_id": None}
    fixture.tensors = {
        name: weight(name, tuple(N_TOKENS if n == n_before else n for n in values.shape))
        for name, values in fixture.tensors.items()
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    return fixture, tokenizer.to_str().encode(), json.dumps(settings).encode()


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command line, `rushlight ...` or `echo "TEXT" | rushlight ...`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(command):
        words = shlex.split(command)
        start = words.index("rushlight")
        assert start == 0 or (words[0], words[start - 1]) == ("echo", "|")
        text = " ".join(words[1 : start - 1]) if start else ""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n".encode())))
        with pytest.raises(SystemExit) as ended:
            main(words[start + 1 :])
        out, err = capsys.readouterr()
        assert not ended.value.code, f"{command}\n{out}\n{err}"
        return out, err

    return run


def serve(hub, model_type, tmp_path, names):  # noqa: F811
    fixture, tokenizer, settings = small_model(model_type)
    folder = fixture.write(tmp_path / "small")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in names:
        hub.repos[name] = files | {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def repositories(lines):
    """The ids on the hub that command lines name."""
    words = {word for line in lines for word in line.split()}
    return {
        SHORT_NAMES.get(word, word) for word in words if word in SHORT_NAMES or re.fullmatch(r"[\w-]+/[\w.-]+", word)
    }


@pytest.mark.parametrize("title", SECTIONS)
def test_each_walk_names_one_model_and_all_steps(title):
    lines = commands(title)
    steps = {word for line in lines for word in re.findall(r"rushlight (\w+)", line)}
    assert steps >= {"pull", "inspect", "record", "verify"}
    assert steps & {"chat", "generate"}
    assert len(repositories(lines)) == 1


@pytest.mark.parametrize("title", SECTIONS)
def test_a_walk_runs(hub, run, tmp_path, title):  # noqa: F811
    lines = [line for line in commands(title) if not re.search("rushlight (record|verify)", line)]
    serve(hub, SECTIONS[title], tmp_path, repositories(lines))
    for line in lines:
        out, err = run(line)
        assert out
        assert "error" not in err


@pytest.mark.parity
@pytest.mark.parametrize("title", SECTIONS)
def test_a_walk_proves_its_model(hub, run, tmp_path, title):  # noqa: F811
    lines = [line for line in commands(title) if re.search("rushlight (record|verify)", line)]
    serve(hub, SECTIONS[title], tmp_path, repositories(lines))
    for line in lines:
        out, _ = run(line)
    assert "equal to the recording" in out
