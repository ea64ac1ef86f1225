"""The tokenizer of a folder: which of its files make it, and which cannot be read here."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.files.limits import MAX_CONFIG_BYTES
from rushlight.text.files import read_tokenizer_object
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_settings import class_name, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["TOKENIZER_FILES", "read_tokenizer"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Every file that a tokenizer is read from, besides the class that config.json may name."""

GPT2_CLASS = "GPT2Tokenizer"
BERT_CLASS = "BertTokenizer"
NOT_READ = ("*.model", "vocab.txt", "vocab.json", "merges.txt")
"""Files of tokenizers: SentencePiece's, and those that are read only with others beside them."""


def read_tokenizer(find: Callable[[str], Path | None]) -> Tokenizer | TokenizerError | None:
    """The tokenizer of a folder.

    That is tokenizer.json; else vocab.json with merges.txt, which are read as GPT-2's; else the vocab.txt of a folder
    whose tokenizer_class is BertTokenizer. A folder without any such file has GPT-2's own, if it has GPT-2's sizes:
    see `Tokenizer.gpt2`.

    Args:
        find: the path of a file by its name, or by a pattern such as `*.model`; None if there is no such file.

    Returns:
        None if the folder has no file of a tokenizer and names no class but GPT-2's. If its tokenizer has a form that
        is not read here, an error to be raised when a text is to be encoded: the model still takes token ids.

    Raises:
        TokenizerError: a file is broken.
    """
    settings = read_settings(find)
    if path := find("tokenizer.json"):
        return Tokenizer.from_file(path, settings)
    if settings.tokenizer_class is None and (config := find("config.json")):
        name = class_name(read_tokenizer_object(config, max_bytes=MAX_CONFIG_BYTES), config)
        settings = replace(settings, tokenizer_class=name)
    vocab, merges, lines = find("vocab.json"), find("merges.txt"), find("vocab.txt")
    if settings.tokenizer_class == BERT_CLASS and lines:
        return Tokenizer.from_bert_vocab(lines, settings)
    is_gpt2 = settings.tokenizer_class in {None, GPT2_CLASS}
    if is_gpt2 and vocab and merges:
        return Tokenizer.from_vocab_merges(vocab, merges, settings)
    if there := next(filter(None, map(find, NOT_READ)), None):
        return _unread(there, settings, is_gpt2=is_gpt2)
    if not is_gpt2:
        file = settings.file or find("config.json") or Path("tokenizer.json")
        return TokenizerError(
            f"the tokenizer is a {settings.tokenizer_class}, and none of its files are here",
            file=file,
            remedy=f"copy them here, then {_convert(file.parent)}",
        )
    return None


def _unread(path: Path, settings: TokenizerSettings, *, is_gpt2: bool) -> TokenizerError:
    convert = _convert(path.parent)
    if path.name == "vocab.txt" and is_gpt2:
        return TokenizerError(
            "no file says which tokenizer this vocabulary belongs to",
            file=path,
            remedy='if it is BERT\'s, put {"tokenizer_class": "BertTokenizer"} into tokenizer_config.json beside it; '
            f"else {convert}",
        )
    if path.name in {"vocab.json", "merges.txt"} and is_gpt2:
        other = "merges.txt" if path.name == "vocab.json" else "vocab.json"
        return TokenizerError(
            f"a tokenizer without its {other} cannot be read",
            file=path,
            remedy=f"put its {other}, or its tokenizer.json, beside it",
        )
    kind = "a SentencePiece model" if is_gpt2 else f"a {settings.tokenizer_class}"
    return TokenizerError(f"{kind} is read from a tokenizer.json only", file=path, remedy=convert)


def _convert(folder: Path) -> str:
    program = "import sys; from transformers import AutoTokenizer as T; "
    program += "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    return f'make one where transformers is: `python -c "{program}" {shlex.quote(str(folder))}`'
