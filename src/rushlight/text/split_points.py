"""Finds where a text can be cut without changing its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

    from rushlight.text.added_tokens import AddedTokens

__all__ = ["last_split_point", "splits_before_spaces"]


def splits_before_spaces(library: tokenizers.Tokenizer, added: AddedTokens) -> bool:
    """Whether a text may be cut before every space or newline that follows a character other than white space.

    This holds for BPE over the words of the ByteLevel pre-tokenizer, whose pattern never joins such a pair of
    characters, if the text is not normalized first and no added token in it could reach across the cut.
    """
    from tokenizers import models, pre_tokenizers

    words = library.pre_tokenizer
    return (
        isinstance(library.model, models.BPE)
        and library.normalizer is None
        and isinstance(words, pre_tokenizers.ByteLevel)
        and words.use_regex
        and not words.add_prefix_space
        and added.are_all_special
    )


def last_split_point(text: str, start: int) -> int:
    """The last index, `start` or later, of a space or newline that follows another character; 0 if there is none."""
    for i in range(len(text) - 1, max(start, 1) - 1, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return 0
