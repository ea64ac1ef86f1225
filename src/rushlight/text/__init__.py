"""Text to token ids and back: tokenizers, streaming decode, stop strings. Independent of models."""

from rushlight.text.chunks import encode_chunks, read_chunks
from rushlight.text.folder import TOKENIZER_FILES, read_tokenizer
from rushlight.text.gpt2 import gpt2_tokenizer
from rushlight.text.stop import StopStrings
from rushlight.text.stream import DecodeStream
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_json import read_tokenizer_json

__all__ = [
    "TOKENIZER_FILES",
    "DecodeStream",
    "StopStrings",
    "Tokenizer",
    "encode_chunks",
    "gpt2_tokenizer",
    "read_chunks",
    "read_tokenizer",
    "read_tokenizer_json",
]
