"""How an answer of a conversation is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.cli.terminal import out_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rushlight.runtime.result import Generation


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without the white space that models begin an answer with."""
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        begun = begun or bool(text)
        if text:
            yield text


def out_whole(pieces: Iterable[str], write: Callable[[str], None] = out_text) -> None:
    """The pieces as they come, then the end of the line, whatever ends them."""
    last = ""
    try:
        for last in pieces:
            write(last)
    finally:
        write("" if last.endswith("\n") else "\n")


def summary(result: Generation) -> str:
    """Counts and rates of an answer, in a line."""
    stats = result.stats
    return (
        f"prompt {stats.prompt_tokens:,} tokens ({stats.cached_tokens:,} cached) at {stats.prefill_tok_s:,.0f} tok/s; "
        f"answer {stats.generated_tokens:,} tokens at {stats.decode_tok_s:,.0f} tok/s; "
        f"ended by {result.finish_reason or 'Ctrl-C'}"
    )
