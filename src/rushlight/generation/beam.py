"""Beam search: the likeliest texts found by keeping the best few beginnings at every step.

The search is transformers' (generation/utils.py, `_beam_search`, 5.23), for one prompt: which beginnings go on, which
texts are finished, and when it ends. As there, penalties and biases change log-probabilities, not logits, and what they
leave is summed up and not normalised again; biases come first, then the repetition penalty.

Beams share the blocks of the KV cache that are full and the same; a beam that parts from another computes its last
block, at most 64 tokens, again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.errors import RequestError
from rushlight.generation.runner import PREFILL_ROWS, ModelRunner, require_room
from rushlight.generation.sampling.logprobs import log_softmax, no_valid_token, not_finite
from rushlight.generation.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from rushlight.generation.runner import LanguageModel

MAX_BEAMS = 64

MAX_PENALTY = 100
"""A text's length to this power is still a double."""


class Hypothesis(NamedTuple):
    """A finished text.

    Attributes:
        ids: the new tokens, with the stop token where one ended it.
        logprob: the sum of their log-probabilities, as penalties and biases left them.
        score: logprob / len(ids) ** length_penalty, by which texts are compared.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How to search.

    Attributes:
        n_beams: beginnings kept at every step, and finished texts kept.
        max_tokens: new tokens of a text, at least one.
        length_penalty: above 0 favours long texts, below 0 short ones; 0 compares plain sums.
        early_stopping: True ends when there are n_beams finished texts; False when the best beginning, were it to end
            now, would not be among them; "never" when it cannot come among them at any length.
        stop_ids: tokens that finish a text.
        stops: whether the new tokens of a text end it, for another reason than a stop token.
        params: penalties and biases; nothing else of them is looked at.
        allowed: (V,) the tokens that may be chosen; None is all.
        allowed_first: (V,) the same for the first token after the prompt, where that differs.

    Raises:
        RequestError: values out of their ranges, all of them in one message.
    """

    n_beams: int
    max_tokens: int
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
            problems.append(f"n_beams is {self.n_beams!r}: it should be a whole number, 2 to {MAX_BEAMS}")
        if self.max_tokens < 1:
            problems.append(f"max_tokens is {self.max_tokens!r}: it should be a whole number, 1 or more")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, Real):
            problems.append(f"length_penalty is {self.length_penalty!r}: it should be a number")
        elif not abs(self.length_penalty) <= MAX_PENALTY:
            problems.append(f"length_penalty is {self.length_penalty!r}: it should be within ±{MAX_PENALTY}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            problems.append(f"early_stopping is {self.early_stopping!r}: it should be true, false or 'never'")
        if problems:
            raise RequestError("; ".join(problems))

    def run(self, model: LanguageModel, prompt_ids: Sequence[int]) -> list[Hypothesis]:
        """The finished texts, best first: n_beams of them, or fewer where the vocabulary has no more.

        Raises:
            MemoryLimitError: the beams' keys and values do not fit in the memory there is.
            GenerationError: the logits hold NaN or infinity, or no token is allowed.
        """
        beams = _Beams(model, prompt_ids, self.n_beams, self.max_tokens)
        logprobs = self._logprobs(beams.start(), prompt_ids, [()])
        running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        finished: list[Hypothesis] = []
        # So many that n_beams of them go on even if every beam ends in every stop token.
        n_candidates = max(2, 1 + len(self.stop_ids)) * self.n_beams
        for length in range(1, self.max_tokens + 1):
            totals = (logprobs + np.array([logprob for logprob, _ in running])[:, None]).ravel()
            going_on, parents = [], []
            for rank, candidate in enumerate(_best(totals, n_candidates)):
                parent, token = divmod(int(candidate), logprobs.shape[1])
                total, ids = float(totals[candidate]), (*running[parent][1], token)
                is_last = token in self.stop_ids or length == self.max_tokens
                if not is_last and not (self.stops and self.stops(ids)):
                    going_on.append((total, ids))
                    parents.append(parent)
                elif rank < self.n_beams:
                    finished.append(Hypothesis(ids, total, total / length**self.length_penalty))
            finished = sorted(finished, key=lambda text: -text.score)[: self.n_beams]
            running, parents = going_on[: self.n_beams], parents[: self.n_beams]
            if not running or (len(finished) == self.n_beams and self._is_over(running[0][0], length, finished[-1])):
                break
            texts = [ids for _, ids in running]
            logprobs = self._logprobs(beams.step(parents, texts), prompt_ids, texts)
        if not finished:
            raise no_valid_token(len(prompt_ids) + length - 1)
        return finished

    def _is_over(self, best: float, length: int, worst: Hypothesis) -> bool:
        """Whether no more is to be hoped of the best beginning, of `length` tokens, once there are n_beams texts."""
        if self.early_stopping is True:
            return True
        reached = self.max_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return bool(best / reached**self.length_penalty <= worst.score)

    def _logprobs(
        self, logits: NDArray[np.floating], prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]]
    ) -> NDArray[np.float64]:
        """(B, V) logits after the prompt and each of B texts -> their log-softmax, with biases and penalties."""
        if not np.isfinite(logits).all():
            raise not_finite(len(prompt_ids) + len(texts[0]))
        logprobs = log_softmax(logits)
        params = self.params
        if params.logit_bias:
            logprobs[:, list(params.logit_bias)] += list(params.logit_bias.values())
        for row, ids in zip(logprobs, texts, strict=True):
            if params.repetition_penalty != 1:
                seen = list({*prompt_ids, *ids})
                row[seen] *= np.where(row[seen] < 0, params.repetition_penalty, 1 / params.repetition_penalty)
            if ids and (params.presence_penalty or params.frequency_penalty):
                tokens, counts = np.unique(ids, return_counts=True)
                row[tokens] -= params.presence_penalty + params.frequency_penalty * counts
        allowed = self.allowed if any(texts) or self.allowed_first is None else self.allowed_first
        if allowed is not None:
            logprobs[:, ~allowed] = -np.inf
        return logprobs


def _best(totals: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The indices of the n greatest, greatest first; of equals the earlier first. Minus infinity is none of them."""
    if n < totals.size:
        least = np.partition(totals, -n)[-n]
        order = np.flatnonzero(totals >= least)
    else:
        order = np.arange(totals.size)
    order = order[np.argsort(-totals[order], kind="stable")][:n]
    return order[totals[order] > -np.inf]


class _Beams:
    """The beams' keys and values: a table of blocks for each, full blocks shared."""

    def __init__(self, model: LanguageModel, prompt_ids: Sequence[int], n_beams: int, max_tokens: int) -> None:
        self._prompt_ids = tuple(prompt_ids)
        shared = len(prompt_ids) // BLOCK_SIZE
        own = -(-(len(prompt_ids) + max_tokens) // BLOCK_SIZE) - shared
        self._n_blocks = shared + n_beams * own
        what = f"{n_beams} beams of {len(prompt_ids) + max_tokens} tokens"
        require_room(self._n_blocks, model, what, "search with fewer beams, or for a shorter text")
        self._runner = ModelRunner(model, self._n_blocks)
        self._tables: list[list[int]] = []

    def start(self) -> NDArray[np.floating]:
        """Feeds the prompt to one beam: (1, V) logits."""
        ids = self._prompt_ids
        table = list(range(-(-len(ids) // BLOCK_SIZE)))
        self._tables = [table]
        chunks = [Chunk(ids[at : at + PREFILL_ROWS], at, table) for at in range(0, len(ids), PREFILL_ROWS)]
        return [self._runner([chunk]) for chunk in chunks][-1]

    def step(self, parents: Sequence[int], texts: Sequence[tuple[int, ...]]) -> NDArray[np.floating]:
        """Goes on with new beams, each a token longer than its parent: (B, V) logits.

        The first of a parent's beams takes over its last block; the others compute theirs from their tokens.
        """
        n_computed = len(self._prompt_ids) + len(texts[0]) - 1
        n_full = n_computed // BLOCK_SIZE
        heirs = [parent not in parents[:beam] for beam, parent in enumerate(parents)]
        tables = [
            self._tables[parent][: None if is_heir else n_full] for parent, is_heir in zip(parents, heirs, strict=True)
        ]
        used = {block for table in tables for block in table}
        free = (block for block in range(self._n_blocks) if block not in used)
        chunks = []
        for ids, is_heir, table in zip(texts, heirs, tables, strict=True):
            if len(table) == n_full:
                table.append(next(free))
            start = n_computed if is_heir else n_full * BLOCK_SIZE
            chunks.append(Chunk((*self._prompt_ids, *ids)[start:], start, table))
        self._tables = tables
        return self._runner(chunks)
