"""The bundled GPT-2 tokenizer: the published vocabulary, and known answers."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

import rushlight.text
from rushlight.text import Tokenizer, gpt2_tokenizer
from rushlight.text.gpt2 import vocabulary_and_merges
from rushlight.text.vocab_merges import read_vocab_merges

CASES = json.loads(Path(__file__).with_name("tokenizer_cases.json").read_text())["cases"]

# SHA-256 of the files of openai-community/gpt2, as listed by the hub.
VOCAB_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return gpt2_tokenizer()


def shipped_merges() -> bytes:
    return gzip.decompress(Path(rushlight.text.__file__).with_name("gpt2_merges.txt.gz").read_bytes())


def test_the_merges_are_the_published_file() -> None:
    assert hashlib.sha256(shipped_merges()).hexdigest() == MERGES_SHA256


def test_the_vocabulary_written_as_json_is_the_published_file() -> None:
    vocab, merges = vocabulary_and_merges()
    assert hashlib.sha256(json.dumps(vocab).encode()).hexdigest() == VOCAB_SHA256
    assert len(merges) == 50_000


def test_sizes(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("<|endoftext|>", allow_special=True) == [50_256]
    assert tokenizer.has_token(50_256)
    assert not tokenizer.has_token(50_257)
    assert not tokenizer.has_token(-1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:20] or "empty")
def test_known_answers(tokenizer: Tokenizer, case: dict) -> None:
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["text"]


def test_vocab_json_and_merges_txt_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps(vocabulary_and_merges()[0]))
    merges.write_bytes(shipped_merges().replace(b"\n", b"\r\n"))
    read = read_vocab_merges(vocab, merges)
    assert read.vocabulary() == tokenizer.vocabulary()
    for case in CASES:
        assert read.encode(case["text"]) == case["ids"]
    assert read.encode("<|endoftext|>", allow_special=True) == [50_256]


def test_every_byte_is_a_token(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    text = "".join(stream.push(token_id) for token_id in tokenizer.encode("".join(map(chr, range(0x180)))))
    assert text == "".join(map(chr, range(0x180)))
