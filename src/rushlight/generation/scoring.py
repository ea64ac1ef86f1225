"""How likely given tokens are: log-probabilities after a prompt, and perplexity over sliding windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, takewhile, zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.errors import RushlightError
from rushlight.generation.runner import PREFILL_ROWS, ModelRunner, require_room
from rushlight.generation.sampling.logprobs import logprobs_of, not_finite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.generation.runner import LanguageModel

MAX_LANES = 16
"""Scored together."""

MAX_JOBS = 64
"""Sequences read ahead: four answers to each of MAX_LANES questions."""


class Likelihood(NamedTuple):
    """Of the tokens that were scored.

    Attributes:
        logprobs: (n,) natural logarithms of their probabilities, float64.
        greedy: (n,) whether each was the likeliest token where it stands.
    """

    logprobs: NDArray[np.float64]
    greedy: NDArray[np.bool_]


class _Job:
    """A sequence to be scored: all its tokens but the last are fed; those from `first` on have the logits wanted."""

    def __init__(self, ids: Sequence[int], n_scored: int) -> None:
        self.ids = ids
        self.inputs = list(ids[:-1])
        self.first = len(self.inputs) - n_scored
        self._parts = [Likelihood(np.empty(0), np.empty(0, np.bool_))]

    @property
    def n_blocks(self) -> int:
        """Of the cache, how many it needs."""
        return -(-len(self.inputs) // BLOCK_SIZE)

    def take(self, logits: NDArray[np.floating]) -> None:
        """Takes the (R, V) logits after the next R of the tokens from `first` on."""
        start = self.first + 1 + sum(len(part.logprobs) for part in self._parts)
        self._parts.append(_likelihood(logits, self.ids[start : start + len(logits)]))

    def likelihood(self) -> Likelihood:
        """All that was found.

        Raises:
            GenerationError: the logits held NaN or infinity.
        """
        likelihood = Likelihood(*(np.concatenate(part) for part in zip(*self._parts, strict=True)))
        if not np.isfinite(likelihood.logprobs).all():
            position = self.first + 1 + int(np.argmin(np.isfinite(likelihood.logprobs)))
            raise not_finite(position)
        return likelihood


_Lane = list[_Job]
"""Sequences that begin alike: they go one after the other through the same blocks, and what they share only once."""


class Scorer:
    """Scores sequences, many of them in one step; each comes out as it would alone.

    Args:
        model: the model.
        capacity: the most tokens that a sequence has, its last not counted: nothing follows that one. All that run
            together have the memory of one such sequence, or of MAX_LANES blocks, if that is more.
        in_one_piece: run each sequence alone, at once and from its beginning, for whoever looks at the rows.

    Raises:
        MemoryLimitError: there is not as much memory.
    """

    def __init__(self, model: LanguageModel, capacity: int, *, in_one_piece: bool = False) -> None:
        self._n_blocks = max(-(-capacity // BLOCK_SIZE), MAX_LANES)
        require_room(self._n_blocks, model, f"{self._n_blocks * BLOCK_SIZE} tokens", "free memory")
        self._runner = ModelRunner(model, self._n_blocks)
        self._max_scored_rows = model.max_scored_rows
        self._in_one_piece = in_one_piece

    def score_many(self, asked: Iterable[tuple[Sequence[int], int]]) -> Iterator[Likelihood]:
        """How likely the end of each sequence is, given all before it; in order.

        Args:
            asked: sequences, each with how many tokens at its end are scored: one or more stand before them. At most
                MAX_JOBS are read ahead; what is raised in reading comes after what was read before.

        Raises:
            GenerationError: the logits hold NaN or infinity.
        """
        jobs = (_Job(ids, n_scored) for ids, n_scored in asked)
        if self._in_one_piece:
            for job in jobs:
                whole = Chunk(job.inputs, 0, range(job.n_blocks), all_logits=True)
                for _, logits in self._feed([whole], len(job.inputs)):
                    job.take(logits[job.first :])
                yield job.likelihood()
            return
        for lanes in self._waves(jobs):
            self._score(lanes)
            for lane in lanes:
                yield from (job.likelihood() for job in lane)

    def _waves(self, jobs: Iterable[_Job]) -> Iterator[list[_Lane]]:
        """As many jobs at a time as there are blocks for, in lanes."""
        lanes: list[_Lane] = []
        n_jobs = n_blocks = 0
        try:
            for job in jobs:
                is_alike = bool(lanes) and 2 * _n_shared(lanes[-1][-1].inputs, job.inputs) > len(job.inputs)
                held = max(other.n_blocks for other in lanes[-1]) if is_alike else 0
                n_more = max(0, job.n_blocks - held)
                is_full = n_blocks + n_more > self._n_blocks or (not is_alike and len(lanes) == MAX_LANES)
                if n_jobs == MAX_JOBS or is_full:
                    yield lanes
                    lanes, n_jobs, n_blocks, is_alike, n_more = [], 0, 0, False, job.n_blocks
                if not is_alike:
                    lanes.append([])
                lanes[-1].append(job)
                n_jobs, n_blocks = n_jobs + 1, n_blocks + n_more
        except RushlightError:  # what was read before it is not lost
            if lanes:
                yield lanes
            raise
        if lanes:
            yield lanes

    def _score(self, lanes: list[_Lane]) -> None:
        """Scores the first job of every lane together, then the second, and so on."""
        blocks = iter(range(self._n_blocks))
        tables = [list(islice(blocks, max(job.n_blocks for job in lane))) for lane in lanes]
        fed: list[list[int]] = [[] for _ in lanes]
        for round_ in zip_longest(*lanes):
            beginnings, ends, jobs = [], [], []
            for i, job in enumerate(round_):
                if job is None or job.first == len(job.inputs):
                    continue
                known = min(_n_shared(fed[i], job.inputs), job.first)
                fed[i] = job.inputs
                if known < job.first:
                    beginnings.append(Chunk(job.inputs[known : job.first], known, tables[i]))
                ends.append(Chunk(job.inputs[job.first :], job.first, tables[i], all_logits=True))
                jobs.append(job)
            for _ in self._feed(beginnings, PREFILL_ROWS):
                pass
            for i, logits in self._feed(ends, self._max_scored_rows):
                jobs[i].take(logits)

    def _feed(self, chunks: Sequence[Chunk], most_rows: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Runs chunks of different sequences, at most so many rows in a step: which chunk, and its next logits."""
        n_computed = [0] * len(chunks)
        while True:
            step: dict[int, Chunk] = {}
            left = most_rows
            for i, (ids, position, table, all_logits) in enumerate(chunks):
                if part := ids[n_computed[i] : n_computed[i] + left]:
                    step[i] = Chunk(part, position + n_computed[i], table, all_logits)
                    n_computed[i] += len(part)
                    left -= len(part)
            if not step:
                return
            logits = self._runner(list(step.values()))
            at = 0
            for i, chunk in step.items():
                n = len(chunk.ids) if chunk.all_logits else 1
                yield i, logits[at : at + n]
                at += n


def _n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _likelihood(logits: NDArray[np.floating], targets: Sequence[int]) -> Likelihood:
    """(R, V) logits, R token ids -> their log-softmax in float64, and whether they are the likeliest."""
    return Likelihood(logprobs_of(logits, targets), logits.argmax(axis=1) == np.asarray(targets))


@dataclass(slots=True)
class Perplexity:
    """The perplexity of a text, as its windows are added.

    Windows begin every `stride` tokens, and each scores the tokens that the one before did not reach, as in
    transformers' guide "Perplexity of fixed-length models".

    Attributes:
        window, stride: in tokens.
        n_windows: so far.
        n_ids: tokens of the text so far, with those that the tokenizer puts before it.
        n_scored: those that were predicted: not the first, and where windows do not overlap, not the first of any.
        nll_sum: negative log-likelihood of those together, in nats.
        n_bytes: of the text in UTF-8; None where only token ids were given.
        n_beginning: how many of the tokens the tokenizer put before the text.
        elapsed_s: seconds so far.
    """

    window: int
    stride: int
    n_windows: int = 0
    n_ids: int = 0
    n_scored: int = 0
    nll_sum: float = 0.0
    n_bytes: int | None = None
    n_beginning: int = 0
    elapsed_s: float = 0.0
    _guide_sum: float = 0.0
    _guide_weight: int = 0

    def add(self, n_new: int, logprobs: NDArray[np.float64]) -> None:
        """A window that adds `n_new` tokens to the text and scored len(logprobs) of them: all, or all but the first."""
        nll = -math.fsum(logprobs)
        self.n_windows += 1
        self.n_ids += n_new
        self.n_scored += len(logprobs)
        self.nll_sum += nll
        if len(logprobs):
            self._guide_sum += nll / len(logprobs) * (n_new - 1)
            self._guide_weight += n_new - 1

    def count_bytes(self, n_bytes: int) -> None:
        """So many bytes more of the text were read."""
        self.n_bytes = (self.n_bytes or 0) + n_bytes

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of a token, in nats, each token counted once; NaN before there is one."""
        return self.nll_sum / self.n_scored if self.n_scored else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return _exp(self.nll)

    @property
    def guide_perplexity(self) -> float:
        """What the loop in transformers' guide computes, figure for figure.

        There a window that overlaps the one before counts for one token fewer than it scores. At the usual strides the
        two agree to four digits and more; at a stride of 1 only the first window counts there.
        """
        return _exp(self._guide_sum / self._guide_weight if self._guide_weight else math.nan)

    @property
    def bits_per_byte(self) -> float | None:
        """The nll in bits, times tokens a byte (Gao et al., arXiv:2101.00027, 3.1): comparable across tokenizers."""
        return self.nll / math.log(2) * (self.n_ids - self.n_beginning) / self.n_bytes if self.n_bytes else None

    @property
    def tok_s(self) -> float:
        """Tokens of the text a second; where windows overlap, more go through the model."""
        return self.n_ids / self.elapsed_s if self.elapsed_s else 0.0


def sliding_windows(ids: Iterable[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Every window of a text of token ids, and how many tokens at its end are new: not in the window before.

    Args:
        ids: read no further than the window needs, and one more to know whether it is the last.
        window: tokens in a window; the last may have fewer.
        stride: tokens from the beginning of a window to that of the next; at most `window`.
    """
    ids = iter(ids)
    held: list[int] = []
    n_old = 0
    while True:
        held += islice(ids, window + 1 - len(held))
        here = held[:window]
        if len(here) > n_old:
            yield here, len(here) - n_old
        if len(held) <= window:
            return
        del held[:stride]
        n_old = window - stride


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 709 else nll * math.inf  # beyond a double; NaN stays
