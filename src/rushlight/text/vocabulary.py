"""Added tokens; merges them into vocabularies, and checks that every token has a unique id."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from reprlib import repr as short_repr
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError, printable_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    import tokenizers

__all__ = ["AddedToken", "check_id", "check_ids", "check_not_renumbered", "checked_vocab_size", "with_added_tokens"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is recognised in a text before the text is split into words.

    Attributes:
        content: its text.
        id: its id; None if no file states one. It then has its id in the vocabulary, or the next free one.
        special: whether it is a special token.
        flags: those of lstrip, rstrip, normalized and single_word (tokenizers library) that the file sets.
        file: the file that lists it, for errors.
    """

    content: str
    id: int | None = None
    special: bool = True
    flags: Mapping[str, bool] = field(default_factory=dict)
    file: Path | None = None


def check_id(token: str, token_id: object, file: str | os.PathLike[str] | None) -> int:
    """Returns `token_id` if it is a valid id.

    Raises:
        TokenizerError: it is not an int from 0 to 2^32 - 1.
    """
    if type(token_id) is not int or not 0 <= token_id < 1 << 32:
        raise TokenizerError(
            f'the id of "{printable_name(token)}" is invalid',
            file=file,
            expected="0 to 2^32 - 1",
            found=short_repr(token_id),
        )
    return token_id


def check_ids(vocab: Mapping[str, object], file: str | os.PathLike[str]) -> None:
    """Checks every id of a vocabulary as `check_id` does.

    Raises:
        TokenizerError: as `check_id`.
    """
    ids: Any = vocab.values()
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < 1 << 32:
        return  # quicker than a call for each
    for token, token_id in vocab.items():
        check_id(token, token_id, file)


def checked_vocab_size(ids: Iterable[tuple[str, int]], file: str | os.PathLike[str] | None) -> int:
    """The highest id + 1.

    Raises:
        TokenizerError: two tokens have the same id, or there are no tokens.
    """
    ids = list(ids)
    unique = {token_id for _, token_id in ids}
    if ids and len(unique) == len(ids):
        return max(unique) + 1
    tokens: dict[int, str] = {}
    for token, token_id in ids:
        other = tokens.setdefault(token_id, token)
        if other != token:
            names = f'"{printable_name(other)}" and "{printable_name(token)}"'
            raise TokenizerError(f"{names} have the same id {token_id}", file=file)
    if not tokens:
        raise TokenizerError("the vocabulary is empty", file=file)
    return max(tokens) + 1


def with_added_tokens(
    vocab: Mapping[str, int], added: Iterable[AddedToken], file: str | os.PathLike[str] | None
) -> dict[str, int]:
    """A vocabulary with added tokens; those without an id are numbered after all others.

    Raises:
        TokenizerError: the vocabulary has an added token under another id.
    """
    vocab = dict(vocab)
    for token in added:
        if token.id is not None and vocab.setdefault(token.content, token.id) != token.id:
            name = printable_name(token.content)
            raise TokenizerError(
                f'"{name}" has another id in the vocabulary',
                file=token.file or file,
                expected=vocab[token.content],
                found=token.id,
            )
    unused = count(max(vocab.values(), default=-1) + 1)
    for token in added:
        if token.content not in vocab:
            vocab[token.content] = next(unused)
    return vocab


def check_not_renumbered(
    added: Iterable[tuple[str, int]], library: tokenizers.Tokenizer, file: str | os.PathLike[str]
) -> None:
    """Requires that the library gives each added token the id that its file states.

    Raises:
        TokenizerError: it gives one another id: the library numbers them after the vocabulary, without gaps.
    """
    for token, token_id in added:
        given = library.token_to_id(token)
        if given != token_id:
            raise TokenizerError(
                f'the tokenizers library would give the added token "{printable_name(token)}" another id',
                file=file,
                expected=given,
                found=token_id,
                remedy="give the added token its id in the vocabulary, or the next one after the vocabulary",
            )
