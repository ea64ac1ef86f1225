"""Reading and encoding a text in chunks gives the same tokens as encoding it at once."""

import io
import random

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from rushlight.errors import RequestError
from rushlight.text import encode_chunks, gpt2_tokenizer, read_chunks, read_tokenizer_json
from rushlight.text.chunks import CHUNK_BYTES
from rushlight.text.split_points import _RUNS, _WORDS
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
    assert gpt2.split_characters == " \n"
    assert list(encode_chunks(gpt2, cut_at_random(rng, text))) == gpt2.encode(text)


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
RUNS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{RUNS}"
GPT_OSS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{RUNS}"
)
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{RUNS}"
)
"""The patterns of the published tokenizer.json files, whose DeepSeek has its line ends as characters."""


def split(*patterns):
    """The pre-tokenizer of a file with these patterns."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.fixture(scope="module")
def merges_across_words():
    """A BPE whose merges would join any neighbouring words, line ends and spaces, if they were not split."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator([random_text(random.Random(seed), 4) for seed in range(2000)], trainer)
    return library


@pytest.mark.parametrize(
    ("words", "normalizer", "characters"),
    [
        (split(LLAMA), None, " "),
        (split(LLAMA.replace("{1,3}", "")), normalizers.NFC(), " "),
        (split(GPT_OSS), None, " "),
        (
            split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK.replace(r"\r\n", "\r\n")),
            normalizers.Sequence([]),
            " ",
        ),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
            None,
            " \n",
        ),
    ],
    ids=["Llama 3", "Qwen", "gpt-oss", "DeepSeek", "SmolLM"],
)
def test_the_families_that_split_words_by_patterns(tmp_path, merges_across_words, words, normalizer, characters):
    library = merges_across_words
    library.pre_tokenizer, library.normalizer = words, normalizer
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert tokenizer.split_characters == characters
    for seed in range(200):
        rng = random.Random(seed)
        text = random_text(rng, 40)
        assert list(encode_chunks(tokenizer, cut_at_random(rng, text))) == library.encode(text).ids


@pytest.mark.parametrize("alternative", sorted(_WORDS))
def test_an_alternative_matches_no_space_after_its_first_character(alternative):
    matches = pre_tokenizers.Split(Regex(alternative), "removed", invert=True)
    rng = random.Random(0)
    found = [
        match for _ in range(100) for match, _ in matches.pre_tokenize_str(random_text(rng, 20) + "1'll ab'LL .x A's ")
    ]
    assert found
    assert not [match for match in found if " " in match[1:]]


@pytest.mark.parametrize("alternative", sorted(_RUNS))
def test_a_run_is_white_space(alternative):
    matches = pre_tokenizers.Split(Regex(alternative), "removed", invert=True)
    assert all(not match.strip() for match, _ in matches.pre_tokenize_str(random_text(random.Random(0), 2000)))


def test_a_pattern_that_joins_words_is_not_split(tmp_path, merges_across_words):
    merges_across_words.pre_tokenizer = split(LLAMA.replace("| ?[", r"|\p{L}+ \p{L}+| ?["))
    merges_across_words.normalizer = None
    merges_across_words.save(str(tmp_path / "tokenizer.json"))
    assert not read_tokenizer_json(tmp_path / "tokenizer.json").split_characters


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
        {"normalizer": normalizers.NFKC()},
        {"added": AddedToken("upon a time", normalized=False)},
    ],
    ids=["prefix space", "no pattern", "not byte-level", "normalizer", "added token"],
)
def test_a_text_that_cannot_be_split_is_encoded_at_once(tmp_path, changes):
    tokenizer = other(tmp_path, **changes)
    text = "Once upon a time, in ten words"
    assert not tokenizer.split_characters
    assert list(encode_chunks(tokenizer, [text[:9], text[9:]])) == tokenizer.encode(text)
    with pytest.raises(RequestError, match="of text cannot be split without changing the tokens"):
        list(encode_chunks(tokenizer, [" word" * (MAX_PROMPT_BYTES // 10)] * 3))


def test_text_without_a_space_is_limited(gpt2):
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


def test_a_file_that_ends_inside_a_character_is_an_error():
    with pytest.raises(RequestError, match="not UTF-8"):
        list(read_chunks(io.BytesIO("aé".encode()[:-1]), "a.txt"))
