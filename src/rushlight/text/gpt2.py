"""GPT-2's own tokenizer, which ships with the package: 256 bytes, 50,000 merges, one end-of-text token.

`gpt2_merges.txt.gz` is OpenAI's merges.txt (openai-community/gpt2), byte for byte. vocab.json does not ship, because it
follows from the merges: each of them made one token.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.text.byte_level import SYMBOLS
from rushlight.text.tokenizer_settings import NO_SETTINGS
from rushlight.text.vocab_merges import END_OF_TEXT, byte_level_bpe

if TYPE_CHECKING:
    from rushlight.text.tokenizer import Tokenizer
    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["gpt2_tokenizer", "vocabulary_and_merges"]

_MERGES = Path(__file__).with_name("gpt2_merges.txt.gz")


def gpt2_tokenizer(settings: TokenizerSettings = NO_SETTINGS) -> Tokenizer:
    """GPT-2's tokenizer of 50,257 tokens, the last of them `<|endoftext|>`."""
    return byte_level_bpe(*vocabulary_and_merges(), settings)


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The id of each token, and the merges, the most frequent first."""
    _version, _, lines = gzip.decompress(_MERGES.read_bytes()).decode().partition("\n")
    halves = iter(lines.split())
    merges = list(zip(halves, halves, strict=True))
    tokens = [*SYMBOLS, *lines.replace(" ", "").split(), END_OF_TEXT]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges
