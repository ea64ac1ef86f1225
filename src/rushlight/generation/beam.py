"""Beam search: keeps the n_beams best prefixes at every step, and ranks the finished completions.

The algorithm is transformers' (generation/utils.py, `_beam_search`, 5.23), for one prompt: which prefixes continue,
which completions are finished, and when the search ends. As there, penalties and biases apply to log-probabilities
instead of logits, and the results are not normalised again; biases come first, then the repetition penalty.

Beams share the full KV blocks of their common prefix. A beam that branches off recomputes its last block, at most 64
tokens. Blocks behind the windows of layers are freed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS, Chunk
from rushlight.errors import RequestError
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.runner import ModelRunner, require_room
from rushlight.generation.sampling.logprobs import largest, log_softmax, no_valid_token, not_finite
from rushlight.generation.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from rushlight.generation.block_table import SequenceBlocks
    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sequence import FinishReason

    _Prefix = tuple[float, tuple[int, ...]]
    """The logprob of a prefix, and its tokens after the prompt."""

MAX_BEAMS = 64

MAX_PENALTY = 100
"""The largest length_penalty: the length of a completion to this power is still a finite double."""


class Hypothesis(NamedTuple):
    """A finished completion.

    Attributes:
        ids: the new tokens, including the stop token that ended it.
        finish_reason: "stop" (stop token, or `BeamSearch.stops`), "length" or "context".
        logprob: the sum of their log-probabilities, after penalties and biases.
        score: logprob / len(ids) ** length_penalty, by which completions are ranked.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float
    score: float


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """The settings of a search.

    Attributes:
        n_beams: prefixes kept at every step, and finished completions kept.
        n: how many completions to return, at most n_beams.
        length_penalty: above 0 favours long completions, below 0 short ones; 0 ranks by the sum alone.
        early_stopping: True stops at n_beams finished completions; False when the best prefix, finished now, would not
            rank among them; "never" when it could not at any length.
        stop_ids: tokens that end a completion.
        stops: whether a list of new tokens ends a completion for another reason, such as a stop string.
        params: max_tokens, penalties and biases; other fields are ignored.
        allowed: (V,) the tokens that may be selected; None for all.
        allowed_first: (V,) `allowed` for the first new token; None if it does not differ.

    Raises:
        RequestError: values out of range, all in one message.
    """

    n_beams: int = 4
    n: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop_ids: Collection[int] = ()
    stops: Callable[[Sequence[int]], bool] | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    allowed: NDArray[np.bool_] | None = None
    allowed_first: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.n_beams, int) or self.n_beams not in range(2, MAX_BEAMS + 1):
            problems.append(f"n_beams is {self.n_beams!r}, expected an integer from 2 to {MAX_BEAMS}")
        elif not isinstance(self.n, int) or self.n not in range(1, self.n_beams + 1):
            problems.append(f"n is {self.n!r}, expected an integer from 1 to n_beams, {self.n_beams}")
        if self.params.max_tokens < 1:
            problems.append(f"max_tokens is {self.params.max_tokens!r}, expected an integer of at least 1")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, Real):
            problems.append(f"length_penalty is {self.length_penalty!r}, expected a number")
        elif not abs(self.length_penalty) <= MAX_PENALTY:
            problems.append(f"length_penalty is {self.length_penalty!r}, expected a number within ±{MAX_PENALTY}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            problems.append(f"early_stopping is {self.early_stopping!r}, expected true, false or 'never'")
        if problems:
            raise RequestError("; ".join(problems))

    def run(self, model: LanguageModel, prompt_ids: Sequence[int]) -> list[Hypothesis]:
        """The n best completions, best first; fewer if the vocabulary does not yield n.

        Raises:
            MemoryLimitError: the keys and values of the beams do not fit in memory.
            GenerationError: the logits contain NaN or infinity, or no token is valid.
        """
        max_length = min(self.params.max_tokens, model.context_length - len(prompt_ids))
        last_reason: FinishReason = "length" if max_length == self.params.max_tokens else "context"
        beams = _Beams(model, prompt_ids, self.n_beams, max_length)
        running: list[_Prefix] = [(0.0, ())]
        logits = beams.start()
        finished: list[Hypothesis] = []
        # Enough that n_beams of them continue even if every beam ends in every stop token.
        n_candidates = max(2, 1 + len(self.stop_ids)) * self.n_beams
        for length in range(1, max_length + 1):
            continuing, parents = [], []
            for rank, (total, parent, token) in enumerate(self._best(logits, prompt_ids, running, n_candidates)):
                ids = (*running[parent][1], token)
                is_stopped = token in self.stop_ids or bool(self.stops and self.stops(ids))
                if not is_stopped and length < max_length:
                    continuing.append((total, ids))
                    parents.append(parent)
                elif rank < self.n_beams:
                    reason = "stop" if is_stopped else last_reason
                    finished.append(Hypothesis(ids, reason, total, total / length**self.length_penalty))
            finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[: self.n_beams]
            running, parents = continuing[: self.n_beams], parents[: self.n_beams]
            if not running or (
                len(finished) == self.n_beams and self._is_over(running[0][0], length, max_length, finished[-1])
            ):
                break
            logits = beams.step(parents, [ids for _, ids in running])
        if not finished:
            raise no_valid_token(len(prompt_ids) + length - 1)
        return finished[: self.n]

    def _is_over(self, best: float, length: int, max_length: int, worst: Hypothesis) -> bool:
        """Whether the best prefix, of `length` tokens, cannot rank above the worst of n_beams completions."""
        if self.early_stopping is True:
            return True
        reached = max_length if self.early_stopping == "never" and self.length_penalty > 0 else length
        return bool(best / reached**self.length_penalty <= worst.score)

    def _best(
        self, logits: NDArray[np.floating], prompt_ids: Sequence[int], running: Sequence[_Prefix], n: int
    ) -> list[tuple[float, int, int]]:
        """The n most likely prefixes one token longer, most likely first: (logprob, index of the parent, token).

        Of equals the earlier first. Log-probabilities are in memory row by row, since those of all rows could be large.

        Args:
            logits: (B, V) after the prompt and each of the B running prefixes.
        """
        found = []
        for parent, (row, (logprob, ids)) in enumerate(zip(logits, running, strict=True)):
            totals = self._logprobs(row, prompt_ids, ids) + logprob
            best = largest(totals, n)
            found += [(total, parent, token) for total, token in zip(totals[best].tolist(), best.tolist(), strict=True)]
        return sorted((each for each in found if each[0] > -math.inf), key=lambda each: -each[0])[:n]

    def _logprobs(
        self, logits: NDArray[np.floating], prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> NDArray[np.float64]:
        """(V,) logits after the prompt and a prefix -> their log-softmax, with biases and penalties."""
        if not np.isfinite(logits).all():
            raise not_finite(len(prompt_ids) + len(ids))
        logprobs = log_softmax(logits)
        params = self.params
        if params.logit_bias:
            logprobs[list(params.logit_bias)] += list(params.logit_bias.values())
        if params.repetition_penalty != 1:
            seen = list({*prompt_ids, *ids})
            logprobs[seen] *= np.where(logprobs[seen] < 0, params.repetition_penalty, 1 / params.repetition_penalty)
        if ids and (params.presence_penalty or params.frequency_penalty):
            tokens, counts = np.unique(ids, return_counts=True)
            logprobs[tokens] -= params.presence_penalty + params.frequency_penalty * counts
        allowed = self.allowed if ids or self.allowed_first is None else self.allowed_first
        if allowed is not None:
            logprobs[~allowed] = -np.inf
        return logprobs


class _Beams:
    """The keys and values of the beams: blocks for each, with full ones shared."""

    def __init__(self, model: LanguageModel, prompt_ids: Sequence[int], n_beams: int, max_tokens: int) -> None:
        self._prompt_ids = tuple(prompt_ids)
        n_prompt, length = len(prompt_ids), len(prompt_ids) + max_tokens
        shared = n_prompt // BLOCK_SIZE
        n_all = shared + n_beams * (-(-length // BLOCK_SIZE) - shared)
        n_blocks = [  # where a window moves on, beams hold fewer blocks than there are
            max(
                group.n_blocks_for(n_prompt, PREFILL_ROWS),
                min(n_all, n_beams * group.n_blocks_for(length, BLOCK_SIZE)),
            )
            for group in model.kv_shape.groups
        ]
        require_room(n_blocks, model, f"{n_beams} beams of {length} tokens", "use fewer beams or a smaller max_tokens")
        self._runner = ModelRunner(model, n_blocks)
        self._pool = BlockPool(model.kv_shape.groups, n_blocks, n_blocks, max_rows=PREFILL_ROWS, has_prefix_cache=False)
        self._beams: list[SequenceBlocks] = []

    def start(self) -> NDArray[np.floating]:
        """Runs the prompt as one beam: (1, V) logits."""
        self._beams = [self._pool.start(self._pool.match_prefix([]))]
        starts = range(0, len(self._prompt_ids), PREFILL_ROWS)
        return [self._run([self._prompt_ids[at : at + PREFILL_ROWS]], [at]) for at in starts][-1]

    def step(self, parents: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> NDArray[np.floating]:
        """Replaces the beams by new ones, each one token longer than its parent: (B, V) logits.

        The first child of a parent takes over its last block; the others recompute theirs from their tokens.
        """
        n_prompt = len(self._prompt_ids)
        n_computed = n_prompt + len(prefixes[0]) - 1
        n_full = n_computed // BLOCK_SIZE
        heirs = [parent not in parents[:beam] for beam, parent in enumerate(parents)]
        beams = [
            self._beams[parent] if is_heir else self._pool.fork(self._beams[parent], n_full)
            for parent, is_heir in zip(parents, heirs, strict=True)
        ]
        for parent, beam in enumerate(self._beams):
            if parent not in parents:
                self._pool.release(beam)
        self._beams = beams
        starts = [n_computed if is_heir else n_full * BLOCK_SIZE for is_heir in heirs]
        rests = [
            ids[start - n_prompt :] if start >= n_prompt else (*self._prompt_ids[start:], *ids)
            for start, ids in zip(starts, prefixes, strict=True)
        ]
        return self._run(rests, starts)

    def _run(self, rests: Sequence[tuple[int, ...]], starts: Sequence[int]) -> NDArray[np.floating]:
        """Runs the rest of each beam's tokens: (B, V) logits."""
        chunks = []
        for beam, ids, start in zip(self._beams, rests, starts, strict=True):
            self._pool.grow(beam, start + len(ids))
            table, *others = beam.views
            chunks.append(Chunk(ids, start, table, other_blocks=others))
        logits = self._runner(chunks)
        for beam, ids, start in zip(self._beams, rests, starts, strict=True):
            n_full = (start + len(ids)) // BLOCK_SIZE
            self._pool.commit(beam, (), n_full * BLOCK_SIZE)  # children may recompute the block after these
        return logits
