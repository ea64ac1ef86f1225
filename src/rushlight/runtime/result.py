"""The results that a model returns: generations, beams and scores, with statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.text import StopStrings
from rushlight.text.stream import WINDOW_TOKENS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Self

    from rushlight.generation import FinishReason, Hypothesis, TokenLogprob
    from rushlight.text import Tokenizer


@dataclass(slots=True)
class Stats:
    """Token counts and times of a generation.

    Times are those of all steps that included the sequence, in seconds: prefill up to its first new token, decode after
    it. A step counts in full for each of its sequences.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens found in the prefix cache, and so not computed.
        generated_tokens: new tokens, including the stop token.
    """

    prompt_tokens: int
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cached_tokens: int = 0

    @property
    def prefill_tok_s(self) -> float:
        """Computed prompt tokens per second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """New tokens per second, without the first, which prefill yields."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0


class Token(NamedTuple):
    """A generated token as a stream delivers it.

    Attributes:
        id: the token id.
        text: the token, decoded in the context of the tokens before it; None if the model has no tokenizer, or no token
            has this id. Part of a character decodes to U+FFFD here, but never in `Delta.text`.
        logprob: its log-probability and the alternatives; None unless `logprobs` was set.
    """

    id: int
    text: str | None
    logprob: TokenLogprob | None = None


@dataclass(slots=True)
class Generation:
    """A generated completion of a prompt.

    Attributes:
        prompt_ids: the token ids that the model received; the end-of-text token for an empty prompt.
        ids: the new tokens, without the stop token.
        text: the new text, without the stop string; empty if the model has no tokenizer.
        finish_reason: "stop" (stop token or stop string), "length" (max_tokens) or "context" (the model's context is
            full); None until it has finished.
        seed: the seed of the random numbers, even if it was not set; None for greedy decoding.
        stats: token counts and times.
        logprobs: the log-probability of each of `ids`; None unless requested.
        prompt_logprobs: the same for `prompt_ids`, with None for the first, which has no token before it.
    """

    prompt_ids: list[int]
    seed: int | None
    stats: Stats
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None

    def __str__(self) -> str:
        return self.text

    def ids_before(self, position: int) -> list[int]:
        """The last token ids before a position of prompt and completion: enough to decode the token there."""
        n_prompt, start = len(self.prompt_ids), max(0, position - WINDOW_TOKENS)
        return self.prompt_ids[start:position] + self.ids[max(0, start - n_prompt) : max(0, position - n_prompt)]

    def to_json(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Text, ids, finish reason, seed, and log-probabilities if requested, as JSON values.

        Args:
            tokenizer: the model's, for the text of single tokens. This text is None without a tokenizer, and for the
                unused ids of a padded vocabulary.
        """

        def token(position: int, token_id: int, logprob: float) -> dict[str, object]:
            text = token_text(tokenizer, token_id, self.ids_before(position))
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
        return record


def generations_to_json(generations: Sequence[Generation], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The completions of one prompt as a JSON object: the values of the first, and the others under "others"."""
    record, *others = (generation.to_json(tokenizer) for generation in generations)
    return {**record, "others": others} if others else record


def token_text(tokenizer: Tokenizer | None, token_id: int, before: Sequence[int]) -> str | None:
    """The text of a token after the tokens before it; None without a tokenizer, or if no token has this id."""
    return tokenizer.decode([token_id], before=before) if tokenizer and tokenizer.has_token(token_id) else None


@dataclass(frozen=True, slots=True)
class Beam:
    """A completion found by beam search.

    Attributes:
        prompt_ids: the token ids that the model received; the end-of-text token for an empty prompt.
        ids: the new tokens, without the stop token.
        text: the new text, without the stop string; empty if the model has no tokenizer.
        finish_reason: "stop" (stop token or stop string), "length" (max_tokens) or "context" (the model's context is
            full).
        logprob: the sum of the tokens' log-probabilities, including the stop token's, after penalties and biases.
        score: logprob / (number of those tokens) ** length_penalty.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: FinishReason
    logprob: float
    score: float

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(
        cls,
        hypothesis: Hypothesis,
        prompt_ids: list[int],
        *,
        tokenizer: Tokenizer | None,
        stop_ids: Collection[int],
        stop: Sequence[str],
    ) -> Self:
        """The decoded hypothesis, without its stop token or stop string."""
        ids = list(hypothesis.ids)
        if ids[-1] in stop_ids:
            del ids[-1]
        stop_strings = StopStrings(stop)
        shown, _ = stop_strings.push(tokenizer.decode(ids, before=prompt_ids) if tokenizer else "")
        text = shown + stop_strings.flush()
        return cls(prompt_ids, ids, text, hypothesis.finish_reason, hypothesis.logprob, hypothesis.score)


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of a continuation after its prompt.

    Attributes:
        prompt_ids: the token ids before it; the end-of-text token for an empty prompt.
        ids: the tokens of the continuation.
        logprobs: the natural logarithm of the probability of each.
        is_greedy: whether each is the most likely token at its position, so that greedy decoding yields them.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """The natural logarithm of the probability of the continuation: the sum."""
        return math.fsum(self.logprobs)
