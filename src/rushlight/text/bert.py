"""Reads BERT's WordPiece tokenizer from a vocab.txt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.text.files import read_tokenizer_text
from rushlight.text.library import add_tokens
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_settings import NO_SETTINGS
from rushlight.text.vocabulary import checked_vocab_size, with_added_tokens

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import tokenizers

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["read_bert_vocab"]

DEFAULT_NAMES = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
"""BERT's special tokens, unless a file names others."""


def read_bert_vocab(path: str | os.PathLike[str], settings: TokenizerSettings = NO_SETTINGS) -> Tokenizer:
    """The tokenizer of a vocab.txt with one word piece per line; a prompt begins with `[CLS]`.

    Raises:
        TokenizerError: the file cannot be read, or is not a BERT vocabulary.
    """
    vocab = _ids_by_line(read_tokenizer_text(path))
    names = _special_names(vocab, settings, path)
    added = [*settings.added, *settings.unlisted(names.values(), vocab)]
    vocab = with_added_tokens(vocab, added, path)
    library = _word_pieces(vocab, names["unk_token"], settings)
    add_tokens(library, added)
    return Tokenizer(library, checked_vocab_size(vocab.items(), path), path, [vocab[names["cls_token"]]])


def _ids_by_line(text: str) -> dict[str, int]:
    """The id of each token: the number of its line, from 0; of its last line, if it is on two."""
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return {line: number for number, line in enumerate(lines)}


def _special_names(
    vocab: Mapping[str, int], settings: TokenizerSettings, file: str | os.PathLike[str]
) -> dict[str, str]:
    names = DEFAULT_NAMES | dict(settings.names)
    if missing := [names[name] for name in ("unk_token", "cls_token", "sep_token") if names[name] not in vocab]:
        raise TokenizerError(f"not a BERT vocabulary: it is missing {', '.join(missing)}", file=file)
    return names


def _word_pieces(vocab: dict[str, int], unk_token: str, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """As `BertTokenizer` of transformers 5.24: lower case, unless tokenizer_config.json sets do_lower_case to false."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk_token))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars") is not False,
        strip_accents=settings.flag("strip_accents"),
        lowercase=settings.flag("do_lower_case") is not False,
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    return library
