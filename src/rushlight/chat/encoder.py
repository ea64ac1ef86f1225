"""Encodes conversations so that each prompt extends the token ids of the one before, for the prefix cache."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rushlight.errors import RequestError, printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rushlight.chat.provenance import Rendered
    from rushlight.text import Tokenizer

__all__ = ["ConversationEncoder"]

MAX_TURNS = 8
"""The turns that an encoder remembers."""


class _Turn(NamedTuple):
    """A prompt, and the tokens of its answer."""

    rendered: Rendered
    ids: list[int]
    answer: list[int]


class ConversationEncoder:
    """Encodes rendered conversations, and reuses the ids of earlier prompts and answers that they extend.

    A text has many tokenizations, and the one that a model generates is often not the tokenizer's. So if a conversation
    extends a remembered prompt and its answer, their ids are reused, and only the rest is encoded. If a template
    rewrites earlier messages, less is reused. An encoder without remembered turns is stateless.

    Args:
        tokenizer: the model's.
        prefix: the ids before a conversation, for a format that does not write them as a chat template does.
    """

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._prefix = list(prefix)
        self._turns: deque[_Turn] = deque(maxlen=MAX_TURNS)

    def remember(self, rendered: Rendered, ids: list[int], answer: list[int]) -> None:
        """Remembers a prompt, as text and ids, and the ids of its answer."""
        self._turns.append(_Turn(rendered, ids, answer))

    def encode(self, rendered: Rendered) -> list[int]:
        """The token ids of a conversation.

        Raises:
            RequestError: special tokens written by the template cannot be distinguished from typed ones; or as
                `Tokenizer.encode`.
        """
        ids, n_chars = self._remembered(rendered)
        rest = rendered.text[n_chars:]
        if rendered.typed is None:
            self._refuse_ambiguous(rest, rendered.strings)
        typed = [(max(start - n_chars, 0), end - n_chars) for start, end in rendered.typed or () if end > n_chars]
        return ids + self._tokenizer.encode_rendered(rest, typed)

    def _remembered(self, rendered: Rendered) -> tuple[list[int], int]:
        """The remembered ids of the longest prefix of the text, and the length of that prefix in characters."""
        best = (self._prefix, 0)
        for turn in self._turns:
            if _extends(rendered, turn.rendered):
                n_read = len(turn.rendered.text)
                answer = turn.answer[: self._n_answered(turn, rendered.text[n_read:])]
                n_chars = n_read + len(self._tokenizer.decode(answer, before=turn.ids))
                if n_chars > best[1] and self._can_split_before(rendered.text[n_chars:]):
                    best = (turn.ids + answer, n_chars)
        return best

    def _can_split_before(self, rest: str) -> bool:
        """Whether the rest of a text has the same tokens when encoded separately.

        Some tokenizers add a space before a text, but not before a special token of the template.
        """
        return not self._tokenizer.adds_dummy_prefix or rest.startswith(tuple(self._tokenizer.added_tokens()))

    def _n_answered(self, turn: _Turn, text: str) -> int:
        """The number of tokens of an answer at the start of `text`: not all if it was cut, such as at a stop string."""

        def decode(n: int) -> str:
            return self._tokenizer.decode(turn.answer[:n], before=turn.ids)

        low, high = 0, len(turn.answer)
        while low < high:
            middle = (low + high + 1) // 2
            piece = decode(middle).rstrip("\ufffd")  # part of a character
            low, high = (middle, high) if text.startswith(piece) else (low, middle - 1)
        while not text.startswith(decode(low)):
            low -= 1
        return low

    def _refuse_ambiguous(self, text: str, strings: Sequence[str]) -> None:
        typed = _folded("".join(strings))  # a template may join, strip and change the case of messages
        spelled = [token for token in self._tokenizer.added_tokens() if token in text and _folded(token) in typed]
        if spelled:
            raise RequestError(
                f"a message spells {', '.join(map(printable_name, spelled))}, and it cannot be distinguished from the "
                "special token that the chat template writes",
                remedy="leave it out, or start a new conversation",
            )


def _extends(rendered: Rendered, earlier: Rendered) -> bool:
    """Whether a conversation extends an earlier one message by message: equal text may come from other messages."""
    same_messages = rendered.strings[: len(earlier.strings)] == earlier.strings
    return same_messages and rendered.text.startswith(earlier.text)


def _folded(text: str) -> str:
    return "".join(text.split()).casefold()
