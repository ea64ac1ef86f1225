"""Streaming decode: pieces join to the decoded text, are emitted as early as possible, and take linear work."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.text import Tokenizer, gpt2_tokenizer, read_tokenizer_json
from rushlight.text.byte_level import SYMBOLS, token_bytes
from rushlight.text.stream import decode_stream

GPT2 = gpt2_tokenizer()
ID_OF_BYTE = {token_bytes(symbol)[0]: i for i, symbol in enumerate(SYMBOLS)}

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTES, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
DECODERS = {
    "none": None,
    "WordPiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "Metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "Metaspace, never": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    "BPEDecoder": {"type": "BPEDecoder", "suffix": "</w>"},
    "Llama": {"type": "Sequence", "decoders": [REPLACE, BYTES, FUSE, STRIP]},
    "Gemma": {"type": "Sequence", "decoders": [REPLACE, BYTES, FUSE]},
    "Strip": {"type": "Sequence", "decoders": [REPLACE, STRIP]},
    "nested": {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [REPLACE, BYTES]}]},
    # These decoders need the entire text.
    "CTC": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    "Strip of two": {"type": "Sequence", "decoders": [REPLACE, FUSE, {**STRIP, "start": 2}]},
    "Replace across tokens": {"type": "Sequence", "decoders": [FUSE, {**REPLACE, "pattern": {"String": "ab"}}]},
    "ByteLevel and more": {
        "type": "Sequence",
        "decoders": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, REPLACE],
    },
}
TOKENS = [
    *"<unk> ▁ ▁▁ ▁a a b ##b b</w> </w> c . ▁. 's n't ▁n't � é <pad> |".split(),
    *"<0xE2> <0x82> <0xAC> <0xFF> <0x41> <0x20> <0xZZ>".split(),
    *["", " ", " x"],
]


def tokenizer_with(decoder: dict | None, folder: Path) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(TOKENS)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model}))
    return read_tokenizer_json(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: tokenizer_with(decoder, tmp_path_factory.mktemp("text")) for name, decoder in DECODERS.items()}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@given(st.lists(st.integers(0, GPT2.vocab_size - 1)))
def test_pieces_of_any_tokens_join_to_the_decoded_text(ids: list[int]) -> None:
    assert "".join(pieces(GPT2, ids)) == GPT2.decode(ids)


# Bytes that begin, continue and break characters of every length: surrogates, overlong forms, beyond U+10FFFF.
TRICKY = bytes.fromhex("41 c3 a9 c0 e2 82 ac e0 a0 ed bf f0 9f 98 80 8f f4 90 f5 ff")


@given(st.lists(st.sampled_from(TRICKY)).map(bytes))
def test_pieces_of_any_bytes_join_to_the_decoded_text(text: bytes) -> None:
    ids = [ID_OF_BYTE[value] for value in text]
    assert "".join(pieces(GPT2, ids)) == GPT2.decode(ids) == text.decode("utf-8", "replace")


@pytest.mark.parametrize("character", "é€😀")
def test_a_character_is_emitted_with_its_last_byte(character: str) -> None:
    *most, last = [ID_OF_BYTE[value] for value in character.encode()]
    assert pieces(GPT2, [*most, last]) == [""] * len(most) + [character, ""]
    assert pieces(GPT2, most) == [""] * len(most) + ["\N{REPLACEMENT CHARACTER}"]


def test_added_tokens_of_other_characters(fields: dict, tmp_path: Path) -> None:
    added = fields["added_tokens"][0]
    fields["added_tokens"] += [{**added, "id": 259, "content": "日本"}, {**added, "id": 260, "content": "éé"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = read_tokenizer_json(tmp_path / "tokenizer.json")
    ids = [259, 258, 260, 256]
    assert pieces(tokenizer, ids)[:2] == ["日本", "<|endoftext|>"]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", DECODERS)
@given(ids=st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_pieces_of_any_decoder_join_to_the_decoded_text(
    tokenizers: dict[str, Tokenizer], name: str, ids: list[int]
) -> None:
    assert "".join(pieces(tokenizers[name], ids)) == tokenizers[name].decode(ids)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("none", ["a", "b"], ["a", " b", ""]),
        ("WordPiece", ["a", "##b", "c", "."], ["a", "b", " c", ".", ""]),
        ("Metaspace", ["▁a", "b", "▁a"], ["a", "b", " a", ""]),
        ("BPEDecoder", ["b</w>", "c"], ["b", " c", ""]),
        ("Llama", ["▁a", "▁a", "<0xE2>", "<0x82>", "<0xAC>", "b"], ["a", " a", "", "", "", "€b", ""]),
        ("Llama", ["<0x41>", "", "", "▁a"], ["", "A", "", " a", ""]),  # another space is stripped
        ("Llama", ["<0xE2>", "<0x82>"], ["", "", "\N{REPLACEMENT CHARACTER}" * 2]),
        # The first byte is valid, but the run of bytes is not: the library then decodes none of it.
        ("Gemma", ["<0x41>", "<0xFF>", "c"], ["", "", "\N{REPLACEMENT CHARACTER}" * 2 + "c", ""]),
        ("CTC", ["a", "a", "b"], ["", "", "", "ab"]),
    ],
)
def test_text_is_emitted_as_soon_as_no_later_token_can_change_it(
    tokenizers: dict[str, Tokenizer], name: str, tokens: list[str], expected: list[str]
) -> None:
    assert pieces(tokenizers[name], [TOKENS.index(token) for token in tokens]) == expected


class Work:
    """The two functions of a tokenizer, counting the tokens that they process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.n_tokens = 0

    def token(self, token_id: int) -> str:
        self.n_tokens += 1
        return self._tokenizer._token(token_id)

    def decode(self, ids: list[int]) -> str:
        self.n_tokens += len(ids)
        return self._tokenizer._decode(ids)


@pytest.mark.parametrize("name", ["GPT-2", *DECODERS])
@pytest.mark.parametrize("token", ["<0xFF>", "\N{REPLACEMENT CHARACTER}", "▁", "a"])
def test_work_is_linear_in_the_tokens(tokenizers: dict[str, Tokenizer], name: str, token: str) -> None:
    n = 1000
    tokenizer = tokenizers.get(name, GPT2)
    token_id = ID_OF_BYTE[0xFF] if tokenizer is GPT2 else TOKENS.index(token)
    work = Work(tokenizer)
    stream = decode_stream(tokenizer._waits, work.token, work.decode)
    text = "".join(stream.push(token_id) for _ in range(n)) + stream.flush()
    assert text == tokenizer.decode([token_id] * n)
    assert n <= work.n_tokens <= 12 * n
