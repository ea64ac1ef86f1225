"""Small tokenizers, as the JSON that tokenizer.json holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from rushlight.text import Tokenizer, read_tokenizer_json


@pytest.fixture
def fields() -> dict:
    """A byte-level BPE of 256 bytes, two merges and an end-of-text token: ids 0 to 258."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*symbols, "he", "hel", "<|endoftext|>"])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 258, "content": "<|endoftext|>", **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["he", "l"]]},
    }


@pytest.fixture
def load(tmp_path: Path) -> Callable[[dict], Tokenizer]:
    """A function that writes a tokenizer.json and reads it."""

    def write_and_read(fields: dict) -> Tokenizer:
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(fields))
        return read_tokenizer_json(path)

    return write_and_read
