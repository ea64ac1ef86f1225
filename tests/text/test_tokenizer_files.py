"""Missing, broken or hostile tokenizer files: each raises one TokenizerError that names the file."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from rushlight.errors import TokenizerError
from rushlight.text import Tokenizer, read_tokenizer, read_tokenizer_json
from rushlight.text.vocab_merges import read_vocab_merges

Load = Callable[[dict], Tokenizer]
SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())


def added(token: str, token_id: int) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": token, "id": token_id, **flags}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file") as caught:
        read_tokenizer_json(tmp_path / "tokenizer.json")
    assert caught.value.file == str(tmp_path / "tokenizer.json")
    assert "a vocab.json and a merges.txt" in str(caught.value)


def test_a_path_with_nul_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="not a path: embedded null byte"):
        read_tokenizer_json("a\0b")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_only_a_regular_file_is_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not a regular file"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


def test_a_file_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 1 << 30)
    with pytest.raises(TokenizerError, match=r"too large \(expected at most 67,108,864 bytes, found 1,073,741,824\)"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON: expecting value"),
        (b'{"a": 1', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON: unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', "byte 7: not UTF-8"),
        (b"[]", "the top level is not a JSON object"),
        (b'{"model": {}, "model": {}}', 'not strict JSON: the key "model" appears twice'),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "not a tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "the vocabulary is empty"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "not a tokenizer: .*-1"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}', "not a tokenizer: .*4294967296"),
        (b'{"model": {"type": "BPE", "vocab": {"a": true}, "merges": []}}', "not a tokenizer: .*"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "not a tokenizer: .*`b`"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not JSON"),
    ],
)
def test_json_that_is_not_a_tokenizer_is_an_error(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: {problem}"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


def test_two_tokens_with_the_same_id_are_an_error(fields: dict, load: Load) -> None:
    fields["model"]["vocab"]["\x1b[31m"] = 256
    with pytest.raises(TokenizerError, match=r'"\\x1b\[31m" and "he" have the same id 256'):
        load(fields)


def test_an_added_token_with_the_id_of_another_token_is_an_error(fields: dict, load: Load) -> None:
    fields["added_tokens"].append(added("<x>", 256))
    with pytest.raises(TokenizerError, match='"he" and "<x>" have the same id 256'):
        load(fields)


@pytest.mark.parametrize("token_id", [260, 10**9])
def test_an_added_token_whose_id_the_library_would_replace_is_an_error(fields: dict, load: Load, token_id: int) -> None:
    fields["added_tokens"].append(added("<x>", 259))
    assert load(fields).vocab_size == 260
    fields["added_tokens"][-1]["id"] = token_id
    with pytest.raises(TokenizerError, match=rf'the added token "<x>" .* \(expected 259, found {token_id}\)'):
        load(fields)


def test_an_id_far_beyond_the_others_loads_but_does_not_fit_the_model(fields: dict, load: Load) -> None:
    fields["model"]["vocab"]["extra"] = 10**9
    tokenizer = load(fields)
    assert tokenizer.decode([10**9]) == "extra"
    with pytest.raises(TokenizerError, match="ids up to 1000000000, and the model embeds 259 tokens"):
        tokenizer.check_fits(259)


def test_a_panic_while_loading_is_an_error(fields: dict, load: Load) -> None:
    fields["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 4).decode()}
    with pytest.raises(TokenizerError, match="not a tokenizer: Precompiled"):
        load(fields)


def read_from(folder: Path, vocab: object, merges: str) -> Tokenizer:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(merges)
    return read_vocab_merges(folder / "vocab.json", folder / "merges.txt")


def test_vocab_and_merges_may_lack_an_end_of_text_token(tmp_path: Path) -> None:
    vocab = {token: i for i, token in enumerate([*SYMBOLS, "he"])}
    tokenizer = read_from(tmp_path, vocab, "#version: 0.2\nh e\n")
    assert tokenizer.encode("he") == [256]
    assert "<|endoftext|>" not in tokenizer.vocabulary()


@pytest.mark.parametrize(
    ("change", "merges", "problem"),
    [
        ({"he": 0}, "", r'vocab\.json: "!" and "he" have the same id 0'),
        ({"he": True}, "", r'vocab\.json: the id of "he" is invalid'),
        ({"he": 1.0}, "", r'vocab\.json: the id of "he" is invalid'),
        ({"he": "256"}, "", r'vocab\.json: the id of "he" is invalid'),
        ({"he": -1}, "", r'vocab\.json: the id of "he" is invalid'),
        ({"he": 2**32}, "", r'vocab\.json: the id of "he" is invalid'),
        ({}, "#version: 0.2\nh e\n", r"merges\.txt: does not fit the vocabulary: .*`he`"),
        ({"he": 256}, "#version: 0.2\nh e\nh  e\n", r"merges\.txt: line 3 is not a merge"),
        ({"he": 256}, "h", r"merges\.txt: line 1 is not a merge"),
    ],
)
def test_invalid_vocab_and_merges_are_an_error(tmp_path: Path, change: dict, merges: str, problem: str) -> None:
    vocab = {token: i for i, token in enumerate(SYMBOLS)}
    with pytest.raises(TokenizerError, match=problem):
        read_from(tmp_path, vocab | change, merges)


def test_a_vocabulary_that_is_not_byte_level_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r'not a byte-level BPE vocabulary .found the token "a</w>"'):
        read_from(tmp_path, {"a": 0, "a</w>": 1}, "")


def test_missing_merges_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(SYMBOLS)}))
    with pytest.raises(TokenizerError, match=r"merges\.txt: no such file"):
        read_vocab_merges(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_a_large_model_is_parsed_only_by_the_library(fields: dict, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    import rushlight.text.tokenizer_json as module

    parsed = []
    parse = module.parse_tokenizer_json
    monkeypatch.setattr(module, "parse_tokenizer_json", lambda raw, path: parsed.append(len(raw)) or parse(raw, path))
    n_bytes = len(json.dumps(fields))
    assert load(fields).vocab_size == 259
    assert len(parsed) == 1
    assert parsed[0] < n_bytes / 2


@pytest.mark.parametrize("order", [["model", "added_tokens"], ["added_tokens", "model", "decoder"]])
def test_the_model_may_be_anywhere_in_the_file(fields: dict, load: Load, order: list[str]) -> None:
    fields = {key: fields[key] for key in order} | fields
    assert next(iter(fields)) == order[0]
    tokenizer = load(fields)
    assert (tokenizer.vocab_size, tokenizer.encode("hello<|endoftext|>", allow_special=True)[-1]) == (259, 258)


BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize(
    ("config", "with_bos", "prefix"),
    [
        ({}, True, (259,)),
        ({"add_bos_token": True}, True, (259,)),
        ({"add_bos_token": False}, True, ()),
        ({"add_bos_token": None}, True, (259,)),
        ({}, False, ()),
        ({"add_bos_token": True}, False, (259,)),
        ({"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}, False, ()),
        ({"add_bos_token": True, "bos_token": None}, False, ()),
    ],
)
def test_add_bos_token_overrides_the_post_processor(
    fields: dict, tmp_path: Path, config: dict, with_bos: bool, prefix: tuple[int, ...]
) -> None:
    fields["added_tokens"].append(added("<s>", 259))
    if with_bos:
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        token = {"id": "<s>", "ids": [259], "tokens": ["<s>"]}
        single = [*BOS["single"], sequence]
        fields["post_processor"] = {**BOS, "single": single, "pair": single, "special_tokens": {"<s>": token}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **config}))
    tokenizer = read_tokenizer(lambda name: path if (path := tmp_path / name).exists() else None)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.prefix_ids == prefix
