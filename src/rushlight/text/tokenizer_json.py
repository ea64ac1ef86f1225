"""Reads a tokenizer from a tokenizer.json."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.text.charsmap import check_charsmaps
from rushlight.text.files import parse_tokenizer_json, read_tokenizer_bytes
from rushlight.text.library import add_tokens, library_errors, prefix_ids, set_prefix_space
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_settings import NO_SETTINGS, no_bos_token
from rushlight.text.vocabulary import check_not_renumbered, checked_vocab_size

if TYPE_CHECKING:
    from typing import Any

    import tokenizers

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["read_tokenizer_json"]

_IGNORE_SETTINGS = ("PreTrainedTokenizer", "TokenizersBackend")
"""The classes of transformers that use tokenizer.json unchanged, whatever tokenizer_config.json sets."""
_HEAD_BYTES = 4 << 20
"""More than what precedes the model in any file known: 6,415 added tokens take 1.2 MB."""
_MODEL = re.compile(rb'"model"\s*:\s*\{')


def read_tokenizer_json(path: str | os.PathLike[str], settings: TokenizerSettings = NO_SETTINGS) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    As in transformers 5, `settings` add tokens that the file lacks and override `add_prefix_space`; as in transformers
    4, `add_bos_token` overrides whether a text begins with the BOS token. Classes that read nothing but tokenizer.json
    are excepted.

    Args:
        path: the file.
        settings: those of the files next to it.

    Raises:
        TokenizerError: the file cannot be read, the library does not accept it, two tokens have one id, or the library
            would give an added token another id.
    """
    import tokenizers

    fields = _fields_but_model(path)
    check_charsmaps(fields.get("normalizer"), path)
    upgrade = f"if a newer library than tokenizers {tokenizers.__version__} wrote it, pip install --upgrade tokenizers"
    with library_errors("not a tokenizer", path, remedy=upgrade):
        library = tokenizers.Tokenizer.from_file(os.fspath(path))
    listed = [(token["content"], token["id"]) for token in fields.get("added_tokens") or ()]
    for content, token_id in listed:
        if library.token_to_id(content) != token_id and (other := library.id_to_token(token_id)) is not None:
            checked_vocab_size([(other, token_id), (content, token_id)], path)
    check_not_renumbered(listed, library, path)
    if settings.tokenizer_class not in _IGNORE_SETTINGS:
        set_prefix_space(library, settings.flag("add_prefix_space"))
    new = [token for token in settings.added if library.token_to_id(token.content) is None]
    add_tokens(library, [*new, *(token for token in settings.added if token.id is None)])
    for token in new:
        if token.id is not None:
            check_not_renumbered([(token.content, token.id)], library, token.file or path)
    return Tokenizer(library, _vocab_size(library, path), path, _prefix(library, settings))


def _fields_but_model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a tokenizer.json without its model, which the library parses: it is most of the file.

    The library writes the model last. A file with another order is parsed in full.
    """
    head = read_tokenizer_bytes(path, first=_HEAD_BYTES)
    if model := _MODEL.search(head):
        with suppress(TokenizerError):
            fields = parse_tokenizer_json(head[: model.start()] + b'"model": {}}', path)
            if "added_tokens" in fields:
                return fields
    return parse_tokenizer_json(read_tokenizer_bytes(path), path)


def _vocab_size(library: tokenizers.Tokenizer, path: str | os.PathLike[str]) -> int:
    """The highest id + 1.

    Raises:
        TokenizerError: as `checked_vocab_size`.
    """
    n_tokens = library.get_vocab_size()
    with suppress(OverflowError):
        if n_tokens and None not in map(library.id_to_token, range(n_tokens)):
            return n_tokens  # every token has one of these ids; quicker than a dictionary of the vocabulary
    return checked_vocab_size(sorted(library.get_vocab().items()), path)


def _prefix(library: tokenizers.Tokenizer, settings: TokenizerSettings) -> list[int]:
    """The ids before a text: those of the post-processor, unless add_bos_token adds or removes the BOS token.

    Raises:
        TokenizerError: add_bos_token is true, and the vocabulary has no BOS token.
    """
    ids = prefix_ids(library)
    adds_bos = None if settings.tokenizer_class in _IGNORE_SETTINGS else settings.flag("add_bos_token")
    name = settings.names.get("bos_token")
    bos = None if name is None else library.token_to_id(name)
    if adds_bos and not ids and name is not None:
        if bos is None:
            raise no_bos_token(name, settings)
        return [bos]
    return [] if adds_bos is False and ids == [bos] else ids
