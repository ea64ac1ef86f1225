"""White space around special tokens that strip it, such as RoBERTa's `<mask>`."""

import json
import re
import time
from itertools import product

import pytest
from tokenizers import pre_tokenizers

import rushlight
from rushlight.errors import ContextLengthError
from rushlight.text import read_tokenizer_json

TEMPLATE = "{% for message in messages %}<mask>{{ message.content }}{% endfor %}"


def tokenizer_json(**mask):
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 256, "content": "<|endoftext|>", **flags},
            {"id": 257, "content": "<mask>", **flags, **mask},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate([*symbols, "<|endoftext|>", "<mask>"])},
            "merges": [],
        },
    }


def test_a_message_of_white_space_takes_linear_time(make_gpt2):
    files = {"tokenizer.json": tokenizer_json(lstrip=True), "vocab.json": None, "merges.txt": None}
    chat = rushlight.Chat(rushlight.load(make_gpt2(vocab_size=258, files=files)), template=TEMPLATE)
    with chat:
        start = time.process_time()
        with pytest.raises(ContextLengthError):
            chat.send("a" + " " * 64_000 + "b")
        assert time.process_time() - start < 8  # quadratic: half a minute


@pytest.mark.parametrize(("lstrip", "rstrip"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_token_strips_the_white_space_that_the_library_strips(tmp_path, lstrip, rstrip):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(lstrip=lstrip, rstrip=rstrip)))
    tokenizer = read_tokenizer_json(path)
    pieces = ["<mask>", "  \u3000", "\n", "\x1c", "a", "<mask>", "<|endoftext|>"]
    for written in product(pieces, repeat=4):
        text = "".join(written)
        # A typed token comes first, so that the segments after it are encoded one by one.
        ids = tokenizer.encode_rendered("<mask>." + text, [(0, 7)])
        assert ids == tokenizer.encode("<mask>.") + tokenizer.encode(text, allow_special=True)


def test_white_space_is_stripped_only_from_the_templates_text(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(lstrip=True, rstrip=True)))
    tokenizer = read_tokenizer_json(path)
    text = "a <mask>  <mask> b<mask>"
    ids = tokenizer.encode_rendered(text, [(17, 24)])
    assert tokenizer.decode(ids) == re.sub(r" *(<mask>) *", r"\1", text)
    assert ids.count(257) == 2
