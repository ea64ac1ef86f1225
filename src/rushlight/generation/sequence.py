"""One text as it is generated: its tokens, its blocks, and what has not been read yet."""

from __future__ import annotations

from collections import deque
from math import isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.errors import GenerationError
from rushlight.generation.sampling.logprobs import NONE_ALLOWED_REMEDY, NOT_FINITE_REMEDY, TokenLogprob, token_logprob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import SamplingRow
    from rushlight.generation.consumer import ConsumerRef
    from rushlight.generation.sampling.sampler import Sampler
    from rushlight.generation.speculation.controller import Proposer
    from rushlight.generation.speculation.draft_model import Draft

FinishReason = Literal["stop", "length", "context"]
"""Why a text ended: a stop token or stop string, max_tokens, or the model's context."""

MAX_UNREAD = 64
"""Tokens that wait for their reader; then the sequence waits for it."""


class Token(NamedTuple):
    """A token as it is chosen.

    Attributes:
        id: the token.
        finish_reason: why it is the last, or None. With "stop" it is the stop token and no part of the text.
        logprob: how likely it was, where that was asked for.
    """

    id: int
    finish_reason: FinishReason | None
    logprob: TokenLogprob | None = None


class SequenceState:
    """A prompt and the text that goes on from it.

    Args:
        prompt_ids: at least one.
        sampler: says how its tokens are chosen.
        max_tokens: at most so many new ones.
        context_length: the most tokens that prompt and text have together.
        stop_ids: tokens that end it.
        proposers: guess what comes next, in whatever way.
        notify: called, by whichever thread ran the step, when there is something to read.

    Attributes:
        ids: prompt and text.
        n_prompt: how many of them are the prompt.
        scores_prompt: whether the logits after every prompt token are wanted.
        wants_logprobs: whether its reader asks how likely the tokens are.
        always_drafts: whether every guess is checked, also where it does not pay.
        end: the most that there will be.
        n_computed: of how many the keys and values are in the cache: the next that the model sees is ids[n_computed].
        n_cached: prompt tokens that the prefix cache had.
        blocks: the blocks of the cache, in order of positions.
        unread: chosen, and not yet read.
        prompt_logprobs: of each prompt token but the first, as far as they are computed.
        done: nothing more will come.
        error: why it ended, if it went wrong.
        arrival: its place in the order of arrival, from 1; 0 before it is queued.
        reader: whom it is written for; None ends only when it is cancelled.
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
        proposers: Sequence[Proposer | Draft] = (),
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.ids = list(prompt_ids)
        self.n_prompt = len(self.ids)
        self.end = min(self.n_prompt + max_tokens, context_length)
        self.sampler = sampler
        self.scores_prompt = sampler.params.prompt_logprobs is not None
        self.wants_logprobs = sampler.params.logprobs is not None
        self.proposers = proposers
        self.always_drafts = bool(sampler.params.speculate)
        self.notify = notify
        self._stop_ids = stop_ids
        self._ends_as: FinishReason = "length" if self.n_prompt + max_tokens <= context_length else "context"
        self.n_computed = 0
        self.n_cached = 0
        self.blocks: list[int] = []
        self.n_cached_blocks = 0
        """Of the blocks, how many are full, and known to the pool."""
        self.unread: deque[Token] = deque()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.done = self.end == self.n_prompt and not self.scores_prompt
        self.error: Exception | None = None
        self.arrival = 0
        self.consumer: ConsumerRef | None = None
        self.prefill_s = 0.0
        self.decode_s = 0.0

    def is_ready(self) -> bool:
        """Whether its reader has no need to wait."""
        return bool(self.unread) or self.done

    @property
    def n_pending(self) -> int:
        """Tokens to be fed before the next can be chosen: 1 while decoding."""
        return len(self.ids) - self.n_computed

    @property
    def decoding(self) -> bool:
        """Whether its next row is that of the token chosen last."""
        return self.n_pending == 1 and len(self.ids) > self.n_prompt

    @property
    def n_spare(self) -> int:
        """How many tokens may be guessed: no more than may come, and none that needs a block more."""
        return min(self.end - len(self.ids) - 1, len(self.blocks) * BLOCK_SIZE - len(self.ids))

    @property
    def runnable(self) -> bool:
        """Whether a step may take it along: its reader keeps up."""
        return len(self.unread) < MAX_UNREAD

    def n_blocks_for(self, length: int) -> int:
        """How many blocks it lacks to hold `length` positions."""
        return -(-length // BLOCK_SIZE) - len(self.blocks)

    def score(self, logits: NDArray[np.floating]) -> None:
        """Takes the (n, V) logits after the next n tokens, for as many as are followed by one of the prompt.

        Raises:
            GenerationError: they hold NaN or infinity.
        """
        n_top = self.sampler.params.prompt_logprobs or 0
        for position, row in enumerate(logits, self.n_computed + 1):
            if len(self.prompt_logprobs) + 1 == position < self.n_prompt:
                found = token_logprob(row, self.ids[position], n_top)
                if not isfinite(found.logprob):
                    raise GenerationError(
                        f"the model's logits for position {position} are not finite",
                        remedy=NOT_FINITE_REMEDY,
                    )
                self.prompt_logprobs.append(found)

    def sampling_rows(self, n: int) -> list[SamplingRow]:
        """How the next tokens are chosen: n of them, or one where the second depends on the first.

        Raises:
            GenerationError: the text cannot be held to its constraint.
        """
        n = 1 if self.sampler.is_stateful else n
        return [self.sampler.row(position) for position in range(len(self.ids), len(self.ids) + n)]

    def take(self, token: int, logits: NDArray[np.floating] | None) -> None:
        """Takes the token chosen after all that there are; it may be the last.

        Args:
            token: negative if there was none to choose: none is allowed, or the logits are not finite.
            logits: (V,) that it was chosen from; None where nobody asked how likely it is.

        Raises:
            GenerationError: there was none to choose, or the text cannot be held to its constraint.
        """
        if token < 0:
            if self.sampler.allows_none(len(self.ids)):
                raise GenerationError(f"no token may stand at position {len(self.ids)}", remedy=NONE_ALLOWED_REMEDY)
            raise GenerationError(
                f"the model's logits at position {len(self.ids)} have no finite maximum",
                remedy=NOT_FINITE_REMEDY,
            )
        self.sampler.take(token)
        logprob = None if logits is None else token_logprob(logits, token, self.sampler.params.logprobs or 0)
        reason: FinishReason | None = None
        if token in self._stop_ids:
            reason = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) == self.end:
                reason = self._ends_as
        self.unread.append(Token(token, reason, logprob))
        self.done = reason is not None

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        self.error, self.done = error, True

    def read(self) -> Token | None:
        """The next token that was chosen; None if there is none yet, or no more.

        Raises:
            RushlightError: what ended the sequence.
        """
        if self.unread:
            return self.unread.popleft()
        if self.error is not None:
            raise self.error
        return None
