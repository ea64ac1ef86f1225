"""Text: strings to token ids and back, decoded as the tokens come, cut at stop strings. Knows no model."""

from rushlight.text.chunks import encode_chunks, read_chunks
from rushlight.text.folder import TOKENIZER_FILES, read_tokenizer
from rushlight.text.stop import StopStrings
from rushlight.text.stream import DecodeStream
from rushlight.text.tokenizer import Tokenizer

__all__ = [
    "TOKENIZER_FILES",
    "DecodeStream",
    "StopStrings",
    "Tokenizer",
    "encode_chunks",
    "read_chunks",
    "read_tokenizer",
]
