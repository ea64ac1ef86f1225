"""The decode loop: prefill, then a token at a time until something ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from rushlight.generation.context import Context
    from rushlight.generation.sampler import Sampler

FinishReason = Literal["stop", "length", "context"]
"""Why a text ended: a stop token or stop string, max_tokens, or the model's context."""


class Token(NamedTuple):
    """A token as it is chosen.

    Attributes:
        id: the token.
        finish_reason: why it is the last, or None. With "stop" it is the stop token and no part of the text.
    """

    id: int
    finish_reason: FinishReason | None


def decode(
    context: Context,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    context_length: int,
    stop_ids: Collection[int] = (),
) -> Iterator[Token]:
    """Feeds the prompt, then chooses and feeds tokens; the last one yielded says why it is the last.

    Args:
        context: fresh, with room for the prompt and the new tokens.
        prompt_ids: at least one, fewer than context_length.
        sampler: chooses.
        max_tokens: at most so many; with 0 nothing is run and nothing yielded.
        context_length: prompt and text together have at most so many tokens.
        stop_ids: tokens that end the text.
    """
    room = context_length - len(prompt_ids)
    feed = prompt_ids
    for n in range(1, min(max_tokens, room) + 1):
        logits = context.feed(feed)[-1]
        token = sampler.choose(logits, context.length)
        if token in stop_ids:
            yield Token(token, "stop")
            return
        reason: FinishReason | None = "length" if n == max_tokens else "context" if n == room else None
        yield Token(token, reason)
        feed = [token]
