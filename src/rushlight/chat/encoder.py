"""From a rendered conversation to token ids that begin as the last ones did, so that the model's cache finds them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rushlight.errors import RequestError, printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rushlight.chat.provenance import Rendered
    from rushlight.text import Tokenizer

__all__ = ["ConversationEncoder"]

MAX_REMEMBERED = 8


class _Turn(NamedTuple):
    """A prompt that the model has read, and the tokens that it answered with."""

    rendered: Rendered
    ids: list[int]
    answer: list[int]


class ConversationEncoder:
    """Encodes each turn's whole conversation; what the model has read or generated keeps its ids.

    The same text can be spelled in tokens in more than one way, and what a model generates is seldom what the
    tokenizer would have chosen. So where a conversation goes on from an earlier prompt and its answer, their ids are
    taken as they are, and only the rest is encoded. A template that rewrites what was said simply finds less to keep.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._turns: deque[_Turn] = deque(maxlen=MAX_REMEMBERED)

    def remember(self, rendered: Rendered, ids: list[int], answer: list[int]) -> None:
        """That the model has read a prompt, as text and ids, and generated an answer to it."""
        self._turns.append(_Turn(rendered, ids, answer))

    def encode(self, rendered: Rendered) -> list[int]:
        """The ids of a conversation.

        Raises:
            RequestError: it cannot be told which special tokens the template wrote and which somebody typed; or as
                `Tokenizer.encode`.
        """
        known_ids, n_known = self._known(rendered)
        rest = rendered.text[n_known:]
        if rendered.typed is None:
            self._refuse_ambiguous(rest, rendered.strings)
        typed = [(max(start - n_known, 0), end - n_known) for start, end in rendered.typed or () if end > n_known]
        return known_ids + self._tokenizer.encode_marked(rest, typed)

    def _known(self, rendered: Rendered) -> tuple[list[int], int]:
        """The ids of as much of the beginning of a text as they are known for, and how many characters that is."""
        best: tuple[list[int], int] = ([], 0)
        for turn in self._turns:
            if _goes_on(rendered, turn.rendered):
                n_read = len(turn.rendered.text)
                answer = turn.answer[: self._n_answered(turn, rendered.text[n_read:])]
                n_chars = n_read + len(self._tokenizer.decode(answer, before=turn.ids))
                if n_chars > best[1] and self._may_be_cut(rendered.text[n_chars:]):
                    best = (turn.ids + answer, n_chars)
        return best

    def _may_be_cut(self, rest: str) -> bool:
        """Whether the rest of a text has the same tokens when it is encoded alone.

        Some tokenizers put a space before the words of a text, but not before a token that the template writes.
        """
        return not self._tokenizer.marks_beginnings or rest.startswith(tuple(self._tokenizer.added_tokens()))

    def _n_answered(self, turn: _Turn, text: str) -> int:
        """How many tokens of an answer `text` begins with: not all of them if it was cut, as at a stop string."""

        def decode(n: int) -> str:
            return self._tokenizer.decode(turn.answer[:n], before=turn.ids)

        low, high = 0, len(turn.answer)
        while low < high:
            middle = (low + high + 1) // 2
            piece = decode(middle).rstrip("\ufffd")  # of a character that is not complete
            low, high = (middle, high) if text.startswith(piece) else (low, middle - 1)
        while not text.startswith(decode(low)):
            low -= 1
        return low

    def _refuse_ambiguous(self, text: str, strings: Sequence[str]) -> None:
        typed = _folded("".join(strings))  # a template may join what was typed, strip it, and change its case
        spelled = [token for token in self._tokenizer.added_tokens() if token in text and _folded(token) in typed]
        if spelled:
            raise RequestError(
                f"the conversation spells {', '.join(map(printable_name, spelled))}, which the chat template writes "
                "too, and the two cannot be told apart",
                remedy="leave it out, or begin again",
            )


def _goes_on(rendered: Rendered, earlier: Rendered) -> bool:
    """Whether a conversation begins with an earlier one, message by message: one may spell what several made."""
    same_messages = rendered.strings[: len(earlier.strings)] == earlier.strings
    return same_messages and rendered.text.startswith(earlier.text)


def _folded(text: str) -> str:
    return "".join(text.split()).casefold()
