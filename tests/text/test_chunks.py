"""Reading and encoding a text in chunks gives the same tokens as encoding it at once."""

import io
import random

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from rushlight.errors import RequestError
from rushlight.text import encode_chunks, gpt2_tokenizer, read_chunks, read_tokenizer_json
from rushlight.text.chunks import CHUNK_BYTES
from rushlight.text.tokenizer import MAX_PROMPT_BYTES

WORDS = [
    "the",
    "I'll",
    "x",
    "ab",
    "can't",
    "é",
    "日本",
    "語",
    "😀",
    "12",
    "3",
    "...",
    "'",
    "—",
    "<|endoftext|>",
    "ﬁ",
    "é",
]
SPACES = [" ", " ", " ", "\n", "\n\n", "  ", "\t", "\r\n", "\u00a0", "\u3000", " \n ", "\x1c", "\x85", ""]


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_tokenizer()


def random_text(rng, n):
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(n))


def cut_at_random(rng, text):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_chunked_encoding_equals_encoding_at_once(gpt2, seed):
    rng = random.Random(seed)
    text = random_text(rng, 40)
    assert gpt2.splits_before_spaces
    assert list(encode_chunks(gpt2, cut_at_random(rng, text))) == gpt2.encode(text)


def test_tokens_are_yielded_before_the_text_ends(gpt2):
    def pieces():
        yield "Once upon a time"
        yield " there was"
        raise RuntimeError("read too far")

    ids = encode_chunks(gpt2, pieces())
    assert [next(ids) for _ in range(4)] == gpt2.encode("Once upon a time")


def other(tmp_path, **changes):
    """A byte-level BPE tokenizer like GPT-2's, with one change."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, value in changes.items():
        if name == "added":
            library.add_tokens([value])
        else:
            setattr(library, name, value)
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    return read_tokenizer_json(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"normalizer": normalizers.NFC()},
        {"added": AddedToken("upon a time", normalized=False)},
    ],
    ids=["prefix space", "no pattern", "not byte-level", "normalizer", "added token"],
)
def test_a_text_that_cannot_be_split_is_encoded_at_once(tmp_path, changes):
    tokenizer = other(tmp_path, **changes)
    text = "Once upon a time, in ten words"
    assert not tokenizer.splits_before_spaces
    assert list(encode_chunks(tokenizer, [text[:9], text[9:]])) == tokenizer.encode(text)
    with pytest.raises(RequestError, match="of text cannot be split without changing the tokens"):
        list(encode_chunks(tokenizer, [" word" * (MAX_PROMPT_BYTES // 10)] * 3))


def test_a_stretch_without_a_space_is_bounded(gpt2):
    with pytest.raises(RequestError, match="of text without a space cannot be split"):
        list(encode_chunks(gpt2, ("x" * (1 << 18) for _ in range(10**6))))


@pytest.mark.parametrize("text", ["", "\ufeffa\r\nb\n", "é" * CHUNK_BYTES, "x" + "😀" * CHUNK_BYTES])
def test_a_file_is_read_unchanged(text):
    assert "".join(read_chunks(io.BytesIO(text.encode()), "a.txt")) == text


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"ab\xff", 2),
        (b"a" * CHUNK_BYTES + b"b\xc3(", CHUNK_BYTES + 1),
        (b"a" * (CHUNK_BYTES - 1) + b"\xc3(", CHUNK_BYTES - 1),
    ],
)
def test_invalid_utf8_is_refused_with_its_offset(data, offset):
    with pytest.raises(RequestError, match="not UTF-8") as error:
        list(read_chunks(io.BytesIO(data), "a.txt"))
    assert (error.value.file, error.value.offset) == ("a.txt", offset)


def test_a_file_that_ends_inside_a_character():
    with pytest.raises(RequestError, match="not UTF-8"):
        list(read_chunks(io.BytesIO("aé".encode()[:-1]), "a.txt"))
