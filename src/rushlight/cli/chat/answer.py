"""Prints the answers of a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.cli.terminal import out_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rushlight.runtime.result import Generation


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
