"""Reads a byte-level BPE tokenizer from a vocab.json and a merges.txt, the format of transformers' GPT2Tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.text.byte_level import SYMBOLS
from rushlight.text.files import read_tokenizer_object, read_tokenizer_text
from rushlight.text.library import add_tokens, library_errors, set_prefix_space
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_settings import NO_SETTINGS, no_bos_token
from rushlight.text.vocabulary import check_ids, checked_vocab_size, with_added_tokens

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any

    import tokenizers

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["END_OF_TEXT", "byte_level_bpe", "read_vocab_merges"]

END_OF_TEXT = "<|endoftext|>"
"""GPT2Tokenizer's only special token, unless a file names others."""

END_OF_WORD = "</w>"
"""The suffix of word-final tokens in GPT-1's and CLIP's vocabularies."""


def read_vocab_merges(
    vocab_path: str | os.PathLike[str],
    merges_path: str | os.PathLike[str],
    settings: TokenizerSettings = NO_SETTINGS,
) -> Tokenizer:
    """The tokenizer of a vocab.json and a merges.txt.

    A byte may be without a token; encoding a text that needs it is then an error.

    Raises:
        TokenizerError: a file cannot be read or is malformed, two tokens have one id, the vocabulary is not byte-level,
            or a merge has tokens that the vocabulary lacks.
    """
    vocab = read_tokenizer_object(vocab_path)
    check_ids(vocab, vocab_path)
    merges = _parse_merges(read_tokenizer_text(merges_path), merges_path)
    _check_byte_level(vocab, merges, vocab_path)
    return byte_level_bpe(vocab, merges, settings, vocab_path, merges_path)


def byte_level_bpe(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    settings: TokenizerSettings = NO_SETTINGS,
    file: str | os.PathLike[str] | None = None,
    merges_file: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """The byte-level BPE of a vocabulary and its merges, the most frequent first.

    Raises:
        TokenizerError: two tokens have one id, a merge has tokens that the vocabulary lacks, or the settings disagree.
    """
    added = [*settings.added, *settings.unlisted([END_OF_TEXT], vocab)]
    vocab = with_added_tokens(vocab, added, file)
    vocab_size = checked_vocab_size(vocab.items(), file)
    with library_errors("does not fit the vocabulary", merges_file):
        library = _library(vocab, merges)
    set_prefix_space(library, settings.flag("add_prefix_space"))
    add_tokens(library, added)
    return Tokenizer(library, vocab_size, file, _bos_ids(vocab, settings))


def _library(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    library = tokenizers.Tokenizer(models.BPE(vocab, list(merges)))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _bos_ids(vocab: Mapping[str, int], settings: TokenizerSettings) -> list[int]:
    if not settings.flag("add_bos_token"):
        return []
    name = settings.names.get("bos_token", END_OF_TEXT)
    if name not in vocab:
        raise no_bos_token(name, settings)
    return [vocab[name]]


def _parse_merges(text: str, path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    lines: list[Any] = [tuple(line.split(" ")) for line in f"{text}\n".replace("\r\n", "\n").split("\n")]
    merges = [line for line in lines if line != ("",) and line[0] != "#version:"]
    if not set(map(len, merges)) <= {2}:
        number = 1 + lines.index(next(line for line in merges if len(line) != 2))
        raise TokenizerError(f"line {number} is not a merge", file=path, expected="two tokens with a space between")
    return merges


def _check_byte_level(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], file: str | os.PathLike[str]
) -> None:
    """Refuses the vocabulary of another kind of BPE, which differs only in the spelling of its tokens.

    Not every byte needs a token: a tokenizer trained on little text has tokens only for the bytes that it saw.

    Raises:
        TokenizerError: a token is not spelled in the byte-level alphabet.
    """
    symbols = set(SYMBOLS)
    if symbols <= vocab.keys():
        return
    for token in [*filter(lambda token: len(token) == 1 or token.endswith(END_OF_WORD), vocab), *map("".join, merges)]:
        if token.endswith(END_OF_WORD) or not symbols.issuperset(token):
            raise TokenizerError(
                "not a byte-level BPE vocabulary",
                file=file,
                found=f'the token "{token}"',
                remedy="use the model's tokenizer.json",
            )
