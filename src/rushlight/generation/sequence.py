"""The state of one sequence: its tokens, its KV blocks, and its unread output."""

from __future__ import annotations

import weakref
from collections import deque
from math import isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple

from rushlight.generation.block_table import SequenceBlocks
from rushlight.generation.sampling.logprobs import TokenLogprob, no_valid_token, not_finite, token_logprob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import SamplingRow
    from rushlight.generation.consumer import Consumer, ConsumerRef
    from rushlight.generation.sampling.sampler import Sampler

FinishReason = Literal["stop", "length", "context"]
"""Why an output ended: a stop token or stop string, max_tokens, or the model's context length."""

MAX_UNREAD = 64
"""The most tokens that a sequence generates ahead of its consumer."""


class SampledToken(NamedTuple):
    """A sampled token.

    Attributes:
        id: the token.
        finish_reason: why it is the last one, or None. With "stop" it is the stop token, which is not part of the
            output.
        logprob: its log-probability, if requested.
    """

    id: int
    finish_reason: FinishReason | None
    logprob: TokenLogprob | None = None


class SequenceState:
    """A prompt and the output that the engine generates for it.

    Args:
        prompt_ids: at least one token.
        sampler: determines how its tokens are sampled.
        max_tokens: the most new tokens.
        context_length: the most tokens of prompt and output.
        stop_ids: tokens that end the output.
        notify: called after each step of the sequence, by the thread that ran the step.

    Attributes:
        ids: prompt and output.
        n_prompt: the number of prompt tokens.
        end: the most tokens of prompt and output.
        scores_prompt: whether log-probabilities of the prompt tokens are requested.
        wants_logprobs: whether log-probabilities of the output tokens are requested.
        speculate: True verifies draft tokens in every step, False in none, None where they pay.
        n_computed: the number of tokens whose keys and values are in the cache; the next to compute is ids[n_computed].
        n_cached: prompt tokens found in the prefix cache.
        n_sampled: tokens sampled so far, a stop token included.
        blocks: its blocks of the KV cache.
        unread: sampled tokens that the consumer has not read yet.
        prompt_logprobs: log-probabilities of the prompt tokens computed so far, from the second on.
        done: whether it has ended.
        error: the error that ended it.
        arrival: its number in the order of arrival, from 1; 0 before it is queued.
        consumer: the sequence is cancelled when this is garbage-collected; None if it only ends when finished or
            cancelled.
        prefill_s, decode_s: seconds of the steps it took part in, up to the first token and after it.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        *,
        max_tokens: int,
        context_length: int,
        stop_ids: Collection[int] = (),
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.ids = list(prompt_ids)
        self.n_prompt = len(self.ids)
        self.end = min(self.n_prompt + max_tokens, context_length)
        self.sampler = sampler
        self.scores_prompt = sampler.params.prompt_logprobs is not None
        self.wants_logprobs = sampler.params.logprobs is not None
        self.speculate = sampler.params.speculate
        self.notify = notify
        self._stop_ids = stop_ids
        self._reason_at_end: FinishReason = "length" if self.n_prompt + max_tokens <= context_length else "context"
        self.n_computed = 0
        self.n_cached = 0
        self.n_sampled = 0
        self.blocks = SequenceBlocks()
        self.unread: deque[SampledToken] = deque()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.done = self.end == self.n_prompt and not self.scores_prompt
        self.error: Exception | None = None
        self.arrival = 0
        self.consumer: ConsumerRef | None = None
        self.prefill_s = 0.0
        self.decode_s = 0.0

    def watch(self, consumer: Consumer, collected: deque[ConsumerRef]) -> None:
        """Ties the sequence to a consumer: when the consumer is collected, its reference is appended to `collected`.

        A single line, because an interrupt between two could leave a reference without a callback.
        """
        self.consumer = weakref.ref(consumer, collected.append)

    @property
    def is_abandoned(self) -> bool:
        """Whether its consumer has been collected."""
        return self.consumer is not None and self.consumer() is None

    def is_ready(self) -> bool:
        """Whether its consumer can read without waiting for a step."""
        return bool(self.unread) or self.done

    @property
    def n_pending(self) -> int:
        """The number of tokens to compute before the next can be sampled: 1 while decoding."""
        return len(self.ids) - self.n_computed

    @property
    def decoding(self) -> bool:
        """Whether its next row is that of the last sampled token."""
        return self.n_pending == 1 and len(self.ids) > self.n_prompt

    @property
    def max_draft_tokens(self) -> int:
        """The most draft tokens that can be accepted before its end and without another block."""
        return min(self.end - len(self.ids) - 1, self.blocks.end - len(self.ids))

    @property
    def runnable(self) -> bool:
        """Whether a step may include it, because its consumer keeps up."""
        return len(self.unread) < MAX_UNREAD

    def score(self, logits: NDArray[np.floating]) -> None:
        """Takes the (n, V) logits after the next n tokens, and keeps the log-probabilities of prompt tokens.

        Raises:
            GenerationError: the logits hold NaN or infinity.
        """
        n_top = self.sampler.params.prompt_logprobs or 0
        for position, row in enumerate(logits, self.n_computed + 1):
            if len(self.prompt_logprobs) + 1 == position < self.n_prompt:
                scored = token_logprob(row, self.ids[position], n_top)
                if not isfinite(scored.logprob):
                    raise not_finite(position)
                self.prompt_logprobs.append(scored)

    def sampling_rows(self, n: int) -> list[SamplingRow]:
        """How to sample the next n tokens; only one row if each token depends on the one before.

        Raises:
            GenerationError: the constraint cannot continue.
        """
        n = 1 if self.sampler.is_stateful else n
        return [self.sampler.row(position) for position in range(len(self.ids), len(self.ids) + n)]

    def append_token(self, token: int, logits: NDArray[np.floating] | None) -> None:
        """Adds the next sampled token, which may be the last.

        Args:
            token: negative if no token could be sampled: none is allowed, or the logits are not finite.
            logits: (V,) that it was sampled from; None if no log-probabilities are requested.

        Raises:
            GenerationError: no token could be sampled, or the constraint cannot continue.
        """
        if token < 0:
            position = len(self.ids)
            raise no_valid_token(position) if self.sampler.allows_none(position) else not_finite(position)
        self.sampler.accept_token(token)
        logprob = None if logits is None else token_logprob(logits, token, self.sampler.params.logprobs or 0)
        reason: FinishReason | None = None
        if token in self._stop_ids:
            reason = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) == self.end:
                reason = self._reason_at_end
        self.n_sampled += 1
        self.unread.append(SampledToken(token, reason, logprob))
        self.done = reason is not None

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        self.error, self.done = error, True

    def read(self) -> SampledToken | None:
        """The next sampled token; None if there is none yet, or no more.

        Raises:
            RushlightError: the error that ended the sequence.
        """
        if self.unread:
            return self.unread.popleft()
        if self.error is not None:
            raise self.error
        return None
