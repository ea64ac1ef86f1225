"""Reads a tokenizer from a tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.text.charsmap import check_charsmaps
from rushlight.text.files import parse_tokenizer_json, read_tokenizer_bytes
from rushlight.text.library import add_tokens, library_errors, set_prefix_space
from rushlight.text.tokenizer import Tokenizer
from rushlight.text.tokenizer_settings import NO_SETTINGS
from rushlight.text.vocabulary import check_not_renumbered, checked_vocab_size

if TYPE_CHECKING:
    import os

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = ["read_tokenizer_json"]

_IGNORE_SETTINGS = ("PreTrainedTokenizer", "TokenizersBackend")
"""The classes of transformers that use tokenizer.json unchanged, whatever tokenizer_config.json sets."""


def read_tokenizer_json(path: str | os.PathLike[str], settings: TokenizerSettings = NO_SETTINGS) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    As in transformers 5, `settings` add tokens that the file lacks and override `add_prefix_space`, except for the
    classes that read nothing but tokenizer.json.

    Args:
        path: the file.
        settings: those of the files next to it.

    Raises:
        TokenizerError: the file cannot be read, the library does not accept it, two tokens have one id, or the library
            would give an added token another id.
    """
    import tokenizers

    raw = read_tokenizer_bytes(path)
    fields = parse_tokenizer_json(raw, path)
    check_charsmaps(fields.get("normalizer"), path)
    upgrade = f"if a newer library than tokenizers {tokenizers.__version__} wrote it, pip install --upgrade tokenizers"
    with library_errors("not a tokenizer", path, remedy=upgrade):
        library = tokenizers.Tokenizer.from_buffer(raw)
    vocab = fields["model"]["vocab"]
    ids = list(vocab.items()) if isinstance(vocab, dict) else [(piece, i) for i, (piece, _score) in enumerate(vocab)]
    added = [(token["content"], token["id"]) for token in fields.get("added_tokens") or ()]
    vocab_size = checked_vocab_size([*ids, *added], path)
    check_not_renumbered(added, library, path)
    if settings.tokenizer_class not in _IGNORE_SETTINGS:
        set_prefix_space(library, settings.flag("add_prefix_space"))
    new = [token for token in settings.added if library.token_to_id(token.content) is None]
    add_tokens(library, [*new, *(token for token in settings.added if token.id is None)])
    for token in new:
        if token.id is not None:
            check_not_renumbered([(token.content, token.id)], library, token.file or path)
    ids += [(token.content, library.token_to_id(token.content)) for token in new]
    return Tokenizer(library, checked_vocab_size([*ids, *added], path) if new else vocab_size, path)
