"""Fixtures: the embedded model, plain and with ChatML's tokens."""

import json
import shutil

import pytest
from chat_helpers import IM_END, IM_START

import rushlight
from rushlight import demo
from rushlight.chat.sandbox import TemplateSandbox
from rushlight.text import read_tokenizer_json


@pytest.fixture(scope="session")
def tales():
    return rushlight.load()


@pytest.fixture(scope="session")
def renderer():
    with TemplateSandbox() as renderer:
        yield renderer


@pytest.fixture(scope="session")
def chatml_json() -> dict:
    """The embedded model's tokenizer.json with <|im_start|> and <|im_end|> in place of its last two words."""
    fields = json.loads((demo.folder() / "tokenizer.json").read_text(encoding="utf-8"))
    words = {token_id: word for word, token_id in fields["model"]["vocab"].items()}
    for token_id, name in [(IM_START, "<|im_start|>"), (IM_END, "<|im_end|>")]:
        del fields["model"]["vocab"][words[token_id]]
        fields["model"]["vocab"][name] = token_id
        fields["added_tokens"].append({**fields["added_tokens"][0], "id": token_id, "content": name})
    last = {words[IM_START], words[IM_END]}
    fields["model"]["merges"] = [pair for pair in fields["model"]["merges"] if "".join(pair) not in last]
    return fields


@pytest.fixture
def folder(tmp_path, chatml_json):
    """A checkpoint with ChatML's tokens and without a template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(demo.folder() / name, folder / name)
    (folder / "tokenizer.json").write_text(json.dumps(chatml_json))
    return folder


@pytest.fixture(scope="session")
def chatml_tokenizer(tmp_path_factory, chatml_json):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(chatml_json))
    return read_tokenizer_json(path)
