"""A generated text, whole or as it comes: from a sequence's tokens to what a user reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rushlight.text.stream import WINDOW_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rushlight.generation import FinishReason, TokenLogprob
    from rushlight.text import Tokenizer


@dataclass(slots=True)
class Stats:
    """What a generation took: counts in tokens, times in seconds.

    The times are those of the steps that it took part in: prefill up to the first new token, decode after it. Where
    others were generated beside it, they share the steps.

    Attributes:
        prompt_tokens: all of the prompt's.
        cached_tokens: how many of them the prefix cache had, and were not computed.
        generated_tokens: new ones, the stop token too.
    """

    prompt_tokens: int
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cached_tokens: int = 0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens computed a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """New tokens a second, the first not counted: it is the prefill's."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(slots=True)
class Generation:
    """A generated text.

    Attributes:
        prompt_ids: what the model was given; the end-of-text token for an empty prompt.
        ids: the new tokens, without the stop token.
        text: the new text, without the stop string; empty where the model has no tokenizer.
        finish_reason: "stop" (stop token or stop string), "length" (max_tokens) or "context" (the model's context is
            full); None if it was not run to its end.
        seed: the seed of the random numbers, also where none was given; None for greedy choice.
        stats: counts and times.
        logprobs: how likely each of `ids` was; None if that was not asked for.
        prompt_logprobs: the same of `prompt_ids`; None for the first, which nothing stands before.
        others: with `n` above 1, the other texts of the prompt.
    """

    prompt_ids: list[int]
    seed: int | None
    stats: Stats
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    others: list[Generation] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text

    def to_json(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """The text, its ids, why it ended, its seed, and what else was asked for, as values of JSON.

        Args:
            tokenizer: the model's, for the text of single tokens; None where there is none, and for the rows of a
                padded vocabulary, which no token has.
        """
        ids = [*self.prompt_ids, *self.ids]

        def token(position: int, token_id: int, logprob: float) -> dict[str, object]:
            before = ids[max(0, position - WINDOW_TOKENS) : position]
            text = tokenizer.decode([token_id], before=before) if tokenizer and tokenizer.has_token(token_id) else None
            return {"id": token_id, "token": text, "logprob": logprob}

        def entries(logprobs: Iterable[TokenLogprob | None], start: int) -> list[dict[str, object] | None]:
            return [
                entry and {**token(i, entry.id, entry.logprob), "top": [token(i, *other) for other in entry.top]}
                for i, entry in enumerate(logprobs, start)
            ]

        record: dict[str, Any] = {
            "text": self.text,
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
        }
        if self.logprobs is not None:
            record["logprobs"] = entries(self.logprobs, len(self.prompt_ids))
        if self.prompt_logprobs is not None:
            record["prompt_logprobs"] = entries(self.prompt_logprobs, 0)
        if self.others:
            record["others"] = [other.to_json(tokenizer) for other in self.others]
        return record


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that beam search found.

    Attributes:
        prompt_ids: what the model was given; the end-of-text token for an empty prompt.
        ids: the new tokens, without the stop token.
        text: the new text, without the stop string; empty where the model has no tokenizer.
        finish_reason: "stop" (stop token or stop string), "length" (max_tokens) or "context" (the model's context is
            full).
        logprob: the sum of the tokens' log-probabilities, the stop token's too, as penalties and biases left them.
        score: logprob, divided by the number of those tokens to the power of the length penalty.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: FinishReason
    logprob: float
    score: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is after its prompt.

    Attributes:
        prompt_ids: what stands before it; the end-of-text token for an empty prompt.
        ids: the continuation's tokens.
        logprobs: the natural logarithm of the probability of each.
        is_greedy: whether each of them is the likeliest where it stands: greedy generation would give them.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """The natural logarithm of the probability of the whole: the sum."""
        return math.fsum(self.logprobs)
