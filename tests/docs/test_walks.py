"""The commands of docs/walks.md run, on small models in place of the hub's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from architecture_fixtures import Fixture, weight
from hub_server import hub  # noqa: F401 (a fixture)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rushlight.checkpoint.short_names import SHORT_NAMES
from rushlight.models.registry import MODULES

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
    fixture = Fixture.read(model_type)
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
def run(hub, tmp_path):  # noqa: F811
    """Serves a small model under an id of the hub, and runs a command line in an empty folder."""
    program = tmp_path / "bin" / "rushlight"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom rushlight.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(command):
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

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


BUILT_IN = [title for title, model_type in SECTIONS.items() if model_type in MODULES]


@pytest.mark.parametrize("title", BUILT_IN)
def test_a_walk_runs(hub, run, tmp_path, title):  # noqa: F811
    lines = [line for line in commands(title) if not re.search("rushlight (record|verify)", line)]
    serve(hub, SECTIONS[title], tmp_path, repositories(lines))
    for line in lines:
        done = run(line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout
        assert "error" not in done.stderr


@pytest.mark.parity
@pytest.mark.parametrize("title", BUILT_IN)
def test_a_walk_proves_its_model(hub, run, tmp_path, title):  # noqa: F811
    lines = [line for line in commands(title) if re.search("rushlight (record|verify)", line)]
    serve(hub, SECTIONS[title], tmp_path, repositories(lines))
    for line in lines:
        done = run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "equal to the recording" in done.stdout
