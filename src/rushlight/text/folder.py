"""Finds the tokenizer of a folder, by the files in it."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.files.limits import MAX_CONFIG_BYTES
from rushlight.text.bert import read_bert_vocab
from rushlight.text.files import read_tokenizer_object
from rushlight.text.tokenizer_json import read_tokenizer_json
from rushlight.text.tokenizer_settings import class_name, read_settings
from rushlight.text.vocab_merges import read_vocab_merges

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.text.tokenizer import Tokenizer
    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["TOKENIZER_FILES", "read_tokenizer"]

_log = logging.getLogger("rushlight")

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Every file that a tokenizer is read from, besides config.json, which may name its class."""

GPT2_CLASS = "GPT2Tokenizer"
BERT_CLASS = "BertTokenizer"
UNREADABLE = ("*.model", "vocab.txt", "vocab.json", "merges.txt")
"""Files of a tokenizer that cannot be read, or not without others."""


def read_tokenizer(find: Callable[[str], Path | None]) -> Tokenizer | TokenizerError | None:
    """The tokenizer of a folder.

    It is read from tokenizer.json, else from vocab.json and merges.txt in GPT-2's format, else from vocab.txt if the
    tokenizer_class is BertTokenizer.

    Args:
        find: returns the path of a file by its name, or by a pattern such as `*.model`; None if there is no such file.

    Returns:
        None if the folder has no tokenizer file and names no class other than GPT2Tokenizer. If it has a tokenizer in
        a format that cannot be read, the error to raise once a text must be encoded: the model still takes token ids.

    Raises:
        TokenizerError: a file is malformed.
    """
    settings = read_settings(find)
    if settings.flag("add_eos_token"):
        _log.warning("%s: add_eos_token is not applied: a model continues a text, so no token ends it", settings.file)
    if path := find("tokenizer.json"):
        return read_tokenizer_json(path, settings)
    if settings.tokenizer_class is None and (config := find("config.json")):
        name = class_name(read_tokenizer_object(config, max_bytes=MAX_CONFIG_BYTES), config)
        settings = replace(settings, tokenizer_class=name)
    vocab, merges, lines = find("vocab.json"), find("merges.txt"), find("vocab.txt")
    if settings.tokenizer_class == BERT_CLASS and lines:
        return read_bert_vocab(lines, settings)
    is_gpt2 = settings.tokenizer_class in {None, GPT2_CLASS}
    if is_gpt2 and vocab and merges:
        return read_vocab_merges(vocab, merges, settings)
    if found := next(filter(None, map(find, UNREADABLE)), None):
        return _unreadable(found, settings, is_gpt2=is_gpt2)
    if not is_gpt2:
        file = settings.file or find("config.json") or Path("tokenizer.json")
        return TokenizerError(
            f"the tokenizer is a {settings.tokenizer_class}, but none of its files are here",
            file=file,
            remedy=f"copy them here, then {_convert(file.parent)}",
        )
    return None


def _unreadable(path: Path, settings: TokenizerSettings, *, is_gpt2: bool) -> TokenizerError:
    convert = _convert(path.parent)
    if path.name == "vocab.txt" and is_gpt2:
        return TokenizerError(
            "no file states the tokenizer class of this vocabulary",
            file=path,
            remedy='if it is BERT\'s, put {"tokenizer_class": "BertTokenizer"} into tokenizer_config.json next to it; '
            f"otherwise {convert}",
        )
    if path.name in {"vocab.json", "merges.txt"} and is_gpt2:
        other = "merges.txt" if path.name == "vocab.json" else "vocab.json"
        return TokenizerError(
            f"a tokenizer without its {other} cannot be read",
            file=path,
            remedy=f"put its {other}, or its tokenizer.json, next to it",
        )
    kind = "a SentencePiece model" if is_gpt2 else f"a {settings.tokenizer_class}"
    return TokenizerError(f"{kind} can only be read from a tokenizer.json", file=path, remedy=convert)


def _convert(folder: Path) -> str:
    program = "import sys; from transformers import AutoTokenizer as T; "
    program += "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    return f'make one where transformers is installed: `python -c "{program}" {shlex.quote(str(folder))}`'
