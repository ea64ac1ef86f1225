"""GPT-2's tokenizer compared with that of transformers, on random Unicode."""

import random

import pytest

from rushlight.text import gpt2_tokenizer
from rushlight.text.gpt2 import vocabulary_and_merges

pytestmark = pytest.mark.parity

ALPHABETS = [
    [chr(c) for c in range(0x80)],
    list("aeiounrst     \t\n'.,0123456789"),
    ["'s", "'ll", "'T", " the", "\r\n", "   ", "\u00a0", "<|endoftext|>", "\u200d", "\ufeff", "\x00"],
    [chr(c) for c in range(0x80, 0x800)],
    [chr(c) for c in (*range(0x3040, 0x3100), *range(0x4E00, 0x4F00), *range(0xAC00, 0xAC80))],
    [chr(c) for c in range(0x1F300, 0x1F700)],
    [*map(chr, range(0xD800)), *map(chr, range(0xE000, 0x110000))],
]


@pytest.fixture(scope="module")
def theirs(transformers):
    vocab, merges = vocabulary_and_merges()
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)


def random_texts():
    rng = random.Random(0)
    for _ in range(4000):
        mixed = rng.sample(ALPHABETS, rng.randint(1, 3))
        yield "".join(rng.choice(rng.choice(mixed)) for _ in range(rng.randint(0, 60)))


def test_encode_and_decode_equal_transformers(theirs):
    ours = gpt2_tokenizer()
    for text in random_texts():
        ids = theirs.encode(text, split_special_tokens=True)
        assert ours.encode(text) == ids
        assert ours.encode(text, allow_special=True) == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_decoding_of_random_ids_equals_transformers(theirs):
    ours, rng = gpt2_tokenizer(), random.Random(1)
    for _ in range(2000):
        ids = rng.choices(range(50257), k=rng.randint(0, 12))
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_every_token_equals_transformers(theirs):
    ours = gpt2_tokenizer()
    assert ours.vocab_size == len(theirs) == 50257
    for i in range(50257):
        assert ours.decode([i]) == theirs.decode([i], clean_up_tokenization_spaces=False)
