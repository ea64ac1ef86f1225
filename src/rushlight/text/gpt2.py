"""GPT-2's own vocabulary, which the package ships: 256 bytes, 50,000 merges, one end-of-text token.

`gpt2_merges.txt.gz` is OpenAI's merges.txt (openai-community/gpt2), to the byte. vocab.json is not shipped, since it
follows: each merge made one token.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from rushlight.text.byte_level import SYMBOLS

__all__ = ["END_OF_TEXT", "vocabulary_and_merges"]

END_OF_TEXT = "<|endoftext|>"

_MERGES = Path(__file__).with_name("gpt2_merges.txt.gz")


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The id of each token, and the merges, first learnt first."""
    _version, _, lines = gzip.decompress(_MERGES.read_bytes()).decode().partition("\n")
    halves = iter(lines.split())
    merges = list(zip(halves, halves, strict=True))
    tokens = [*SYMBOLS, *lines.replace(" ", "").split(), END_OF_TEXT]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges
