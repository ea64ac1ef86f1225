"""Typed errors and small adjustments for the tokenizers library."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from rushlight.errors import TokenizerError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    import tokenizers

    from rushlight.text.vocabulary import AddedToken

__all__ = ["add_tokens", "library_errors", "prefix_ids", "set_prefix_space", "without_first_prefix"]


@contextmanager
def library_errors(message: str, file: str | os.PathLike[str] | None, remedy: str | None = None) -> Iterator[None]:
    """Raises every exception of the library, Rust panics included, as a TokenizerError that begins with `message`."""
    try:
        yield
    except BaseException as error:
        # A panic is a BaseException whose class cannot be imported; KeyboardInterrupt and the like must pass.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{message}: {error}", file=file, remedy=remedy) from error


def set_prefix_space(library: tokenizers.Tokenizer, value: bool | None) -> None:
    """Sets whether a byte-level tokenizer prepends a space to a text that does not begin with one; None: no change."""
    if value is None:
        return
    from tokenizers import pre_tokenizers

    for part in _parts(library.pre_tokenizer):
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = value


def without_first_prefix(
    pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None,
) -> tokenizers.pre_tokenizers.PreTokenizer | None:
    """A copy of a pre-tokenizer for text that is not at the start, where the scheme `first` adds no prefix."""
    from tokenizers import pre_tokenizers

    pre_tokenizer = deepcopy(pre_tokenizer)
    for part in _parts(pre_tokenizer):
        if isinstance(part, pre_tokenizers.Metaspace) and part.prepend_scheme == "first":
            part.prepend_scheme = "never"
    return pre_tokenizer


def _parts(pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None) -> list[Any]:
    """The members of a Sequence, or the only pre-tokenizer."""
    from tokenizers import pre_tokenizers

    return list(iter(pre_tokenizer)) if isinstance(pre_tokenizer, pre_tokenizers.Sequence) else [pre_tokenizer]


def add_tokens(library: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
    """Makes the library recognise added tokens in a text before it splits the text into words."""
    import tokenizers

    # A word that any text may contain, such as "!" where a file names it as padding, stays an ordinary token.
    tokens = [token for token in added if token.id is not None or not _is_word(library, token.content)]
    library.add_tokens(
        [
            tokenizers.AddedToken(
                token.content, special=token.special, **{"normalized": not token.special, **token.flags}
            )
            for token in tokens
        ]
    )


def prefix_ids(library: tokenizers.Tokenizer) -> list[int]:
    """The ids that the tokenizer's post-processor puts before a text, such as that of `<s>`."""
    import tokenizers

    if library.post_processor is None:
        return []
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).encode("a")
    processed = library.post_processor.process(probe, None, True)
    return list(processed.ids[: processed.sequence_ids.index(0)]) if 0 in processed.sequence_ids else []


def _is_word(library: tokenizers.Tokenizer, content: str) -> bool:
    """Whether encoding `content` yields the token of that text."""
    token_id = library.token_to_id(content)
    if token_id is None:
        return False
    try:
        with library_errors("the tokenizer fails on this text", None):
            return token_id in library.encode(content, add_special_tokens=False).ids
    except TokenizerError:
        return False
