"""Separates the reasoning of an answer from its text while it streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["AnswerDelta", "Channels", "ReasoningParser", "TextOnly", "ThinkTags", "reasoning_parser"]

THINK, END_THINK = "<think>", "</think>"
CHANNEL, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"


class AnswerDelta(NamedTuple):
    """New text of an answer.

    Attributes:
        text: the text, without the markers around reasoning.
        is_reasoning: whether it is reasoning, which precedes the answer proper.
    """

    text: str
    is_reasoning: bool


class ReasoningParser(ABC):
    """Splits one answer, piece by piece: `push` each, then `flush` once."""

    @abstractmethod
    def push(self, piece: str) -> Iterator[AnswerDelta]:
        """The deltas that are certain after this piece; a possible part of a marker is held back."""

    @abstractmethod
    def flush(self) -> Iterator[AnswerDelta]:
        """The rest of the answer."""


class TextOnly(ReasoningParser):
    """The answers of a model that does not mark reasoning."""

    def push(self, piece: str) -> Iterator[AnswerDelta]:
        yield AnswerDelta(piece, is_reasoning=False)

    def flush(self) -> Iterator[AnswerDelta]:
        return iter(())


class ThinkTags(ReasoningParser):
    """Answers that begin with reasoning between `<think>` and `</think>`, as those of Qwen 3 and DeepSeek R1.

    A tag that occurs later in the answer is text. White space around the reasoning is left out.

    Args:
        is_open: whether the prompt ends with `<think>`, so that the answer continues the reasoning.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._held = ""
        self._step = self._reasoning if is_open else self._start
        self._has_begun = False

    def push(self, piece: str) -> Iterator[AnswerDelta]:
        self._held += piece
        step = None
        while step != self._step:
            step = self._step
            text, is_reasoning = step()
            if text:
                yield AnswerDelta(text, is_reasoning)

    def flush(self) -> Iterator[AnswerDelta]:
        text = self._held if self._step in {self._start, self._text} else self._held.rstrip()
        if text:
            yield AnswerDelta(text, is_reasoning=self._step == self._reasoning)

    def _start(self) -> tuple[str, bool]:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held, self._step = text.removeprefix(THINK), self._reasoning
        elif not THINK.startswith(text):
            self._step = self._text
        return "", False

    def _reasoning(self) -> tuple[str, bool]:
        self._held = self._held if self._has_begun else self._held.lstrip()
        text, found, rest = self._held.partition(END_THINK)
        if found:
            self._held, self._step = rest, self._after
            return text.rstrip(), True
        n_certain = len(_without_part_of(END_THINK, text).rstrip())
        self._held = text[n_certain:]
        self._has_begun = self._has_begun or n_certain > 0
        return text[:n_certain], True

    def _after(self) -> tuple[str, bool]:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._text
        return "", False

    def _text(self) -> tuple[str, bool]:
        text, self._held = self._held, ""
        return text, False


class Channels(ReasoningParser):
    """The channels of gpt-oss: each message has a header with its channel, and only that of `final` is the answer.

    Format: https://github.com/openai/harmony.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_reasoning: bool | None = None
        """Of the current message; None while its header is incomplete."""
        self._separator, self._next_separator = "", ""

    def push(self, piece: str) -> Iterator[AnswerDelta]:
        self._held += piece
        while True:
            if self._is_reasoning is None:
                header, found, rest = self._held.partition(MESSAGE)
                if not found:
                    return
                self._is_reasoning, self._held = f"{CHANNEL}final" not in header, rest
                self._separator = self._next_separator if self._is_reasoning else ""
            text, found, rest = self._held.partition(END)
            text = text if found else _without_part_of(END, text)
            yield from self._delta(text)
            if not found:
                self._held = self._held[len(text) :]
                return
            self._held, self._is_reasoning = rest, None

    def flush(self) -> Iterator[AnswerDelta]:
        if self._is_reasoning is not None or not self._held.startswith("<|"):  # text without a header is an answer
            yield from self._delta(self._held)

    def _delta(self, text: str) -> Iterator[AnswerDelta]:
        if text:
            yield AnswerDelta(self._separator + text, bool(self._is_reasoning))
            self._separator, self._next_separator = "", "\n"


def reasoning_parser(template: str, added_tokens: Sequence[str], prompt: str) -> ReasoningParser:
    """The parser of the answer to a prompt.

    Args:
        template: the source of the chat template; "" for a format without one.
        added_tokens: the added tokens of the tokenizer.
        prompt: the rendered conversation.
    """
    if CHANNEL in template and MESSAGE in template:
        return Channels()
    if template and (END_THINK in template or END_THINK in added_tokens):
        return ThinkTags(is_open=prompt.rstrip().endswith(THINK))
    return TextOnly()


def _without_part_of(marker: str, text: str) -> str:
    """`text` without an end that may be the beginning of `marker`."""
    n = next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)
    return text[: len(text) - n]
