"""Prints the answers of a conversation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from rushlight.cli.terminal import out_text, write_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rushlight.chat import AnswerDelta
    from rushlight.runtime.result import Generation


class ReasoningStyle(NamedTuple):
    """What is written before and after reasoning, and whether it is a control sequence, which takes no columns."""

    begin: str
    end: str
    is_control: bool

    @classmethod
    def of_terminal(cls) -> ReasoningStyle:
        """Dimmed; between tags if the user or the terminal wants no styles."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return cls("<think>\n", "\n</think>", is_control=False)
        return cls("\x1b[2m", "\x1b[22m", is_control=True)


def styled(
    deltas: Iterable[AnswerDelta], place: Callable[[str], str], style: ReasoningStyle, *, shows_reasoning: bool
) -> Iterator[str]:
    """What to write for an answer: its reasoning in a style, a blank line, and its text.

    Args:
        deltas: the answer.
        place: wraps and escapes text.
        style: that of the reasoning.
        shows_reasoning: whether to show the reasoning; otherwise a line says that there is some.
    """
    mark = (lambda text: text) if style.is_control else place
    in_reasoning, has_text = False, False
    for text, is_reasoning in deltas:
        if is_reasoning and not shows_reasoning:
            if not in_reasoning:
                write_message("(thinking)")
            in_reasoning = True
        elif is_reasoning:
            yield place(text) if in_reasoning else mark(style.begin) + place(text)
            in_reasoning = True
        elif shown := text if has_text else text.lstrip():
            yield mark(style.end) + place("\n\n" + shown) if in_reasoning and shows_reasoning else place(shown)
            in_reasoning, has_text = False, True
    if in_reasoning and shows_reasoning:
        yield mark(style.end)


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without the white space at the beginning of an answer."""
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        begun = begun or bool(text)
        if text:
            yield text


def out_answer(pieces: Iterable[str], write: Callable[[str], None] = out_text) -> None:
    """Streams the pieces, then a newline, even after an error."""
    last = ""
    try:
        for last in pieces:
            write(last)
    finally:
        write("" if last.endswith("\n") else "\n")


def summary(result: Generation) -> str:
    """Token counts and rates of an answer, in one line."""
    stats = result.stats
    return (
        f"prompt {stats.prompt_tokens:,} tokens ({stats.cached_tokens:,} cached) at {stats.prefill_tok_s:,.0f} tok/s; "
        f"answer {stats.generated_tokens:,} tokens at {stats.decode_tok_s:,.0f} tok/s; "
        f"finish reason: {result.finish_reason or 'Ctrl-C'}"
    )
