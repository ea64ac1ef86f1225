"""The added tokens of a tokenizer, and where they occur in a text."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    import tokenizers

__all__ = ["AddedTokens"]

_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""Unicode's White_Space, which the library strips; Python's `str.strip` also strips U+001C to U+001F."""
_NOT_WHITE_SPACE = re.compile(f"[^{_WHITE_SPACE}]")


class AddedTokens:
    """The tokens that the library recognises in a text before it splits the text into words.

    Attributes:
        contents: the text of each, the longest first, without those that are only white space.
        special: the texts of the special ones, by id.
        are_free_of_spaces: whether those that are not special neither contain white space nor strip it.
    """

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        tokens = library.get_added_tokens_decoder()
        self.special = {token_id: token.content for token_id, token in tokens.items() if token.special}
        self.are_free_of_spaces = all(
            token.special or not (token.lstrip or token.rstrip or token.content.split() != [token.content])
            for token in tokens.values()
        )
        self._library = library
        self._tokens = {token.content: token for token in tokens.values()}
        self._longest_first = sorted(self._tokens, key=len, reverse=True)
        self.contents = [content for content in self._longest_first if content.strip()]

    def __contains__(self, content: str) -> bool:
        return content in self._tokens

    def remove_from(self, text: str, *, special: bool) -> str:
        """`text` without the added tokens in it; of the special ones, only if `special`."""
        removed = [content for content in self._longest_first if special or not self._tokens[content].special]
        return re.sub(_any_of(removed), "", text) if removed else text

    def spans(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The places of `contents` in text[start:end], each with the white space that the token strips."""
        return self._spans(self._pattern, text, start, end) if self.contents else iter(())

    def word_spans(self, text: str, start: int, end: int, *, without: Collection[str]) -> Iterator[tuple[int, int]]:
        """As `spans`, of the tokens that are `words` and of those that are only white space, but of none `without`."""
        if not self.words:
            return iter(())
        spans = self._spans(self._word_pattern, text, start, end)
        return (span for span in spans if text[slice(*span)].strip(_WHITE_SPACE) not in without)

    @cached_property
    def words(self) -> frozenset[str]:
        """Those that are not special and that the model has among its own words, such as the HTML tags of Gemma."""
        model = self._library.model
        return frozenset(
            content
            for content, token in self._tokens.items()
            if not token.special and model.token_to_id(content) is not None
        )

    def _spans(self, pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        # A token is searched for and then widened, as the library does: a pattern that begins with optional white space
        # takes time quadratic in the white space of the text.
        while match := pattern.search(text, start, end):
            token = self._tokens[match[0]]
            first, last = match.span()
            if token.lstrip:
                first = start + len(text[start:first].rstrip(_WHITE_SPACE))
            if token.rstrip:
                after = _NOT_WHITE_SPACE.search(text, last, end)
                last = after.start() if after else end
            yield first, last
            start = last

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_any_of(self.contents))

    @cached_property
    def _word_pattern(self) -> re.Pattern[str]:
        return re.compile(_any_of(content for content in self._longest_first if content in self.words))


def _any_of(contents: Iterable[str]) -> str:
    return "|".join(map(re.escape, contents))
