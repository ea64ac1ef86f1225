"""Scoring: log-likelihoods of continuations after a prompt, and perplexity over sliding windows."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile, zip_longest
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS, Chunk
from rushlight.errors import RequestError, RushlightError
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.runner import ModelRunner, require_room
from rushlight.generation.sampling.logprobs import logprobs_of, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from rushlight.backends.batch import KVGroup
    from rushlight.generation.block_table import SequenceBlocks
    from rushlight.generation.runner import LanguageModel

MAX_LANES = 16
"""The most sequences scored in one step."""

MAX_JOBS = 64
"""The most sequences read ahead, such as four answers to each of MAX_LANES questions."""

DEFAULT_STRIDE = 512
"""Tokens from one window to the next, as in transformers' guide."""


class Likelihood(NamedTuple):
    """The likelihood of n scored tokens.

    Attributes:
        logprobs: (n,) natural logarithms of their probabilities, float64.
        greedy: (n,) whether each is the most likely token at its position.
    """

    logprobs: NDArray[np.float64]
    greedy: NDArray[np.bool_]


class _Job:
    """A sequence to score: its inputs are all tokens but the last, and logits are needed from input `first`."""

    def __init__(self, ids: Sequence[int], n_scored: int) -> None:
        self.ids = ids
        self.inputs = list(ids[:-1])
        self.first = len(self.inputs) - n_scored
        self._parts = [Likelihood(np.empty(0), np.empty(0, np.bool_))]

    def score(self, logits: NDArray[np.floating]) -> None:
        """Scores the next R tokens with the (R, V) logits before them."""
        start = self.first + 1 + sum(len(part.logprobs) for part in self._parts)
        self._parts.append(_likelihood(logits, self.ids[start : start + len(logits)]))

    def likelihood(self) -> Likelihood:
        """The likelihood of all scored tokens.

        Raises:
            GenerationError: the logits contain NaN or infinity.
        """
        likelihood = Likelihood(*(np.concatenate(part) for part in zip(*self._parts, strict=True)))
        if not np.isfinite(likelihood.logprobs).all():
            position = self.first + 1 + int(np.argmin(np.isfinite(likelihood.logprobs)))
            raise not_finite(position)
        return likelihood


@dataclass(frozen=True, slots=True)
class _Lane:
    """Consecutive sequences with a common prefix. They use the same blocks, and the prefix is computed once.

    Attributes:
        jobs: the sequences.
        n_common: the inputs that all of them begin with. What falls behind a window before the end of these is freed.
    """

    jobs: tuple[_Job, ...]
    n_common: int

    @classmethod
    def of(cls, job: _Job) -> Self:
        return cls((job,), len(job.inputs))

    def shares_prefix(self, job: _Job) -> bool:
        """Whether a sequence has most of its inputs in common with the last one."""
        return 2 * _n_shared(self.jobs[-1].inputs, job.inputs) > len(job.inputs)

    def joined(self, job: _Job) -> _Lane:
        """The lane with another sequence."""
        last = self.jobs[-1]
        n_common = min(self.n_common, last.first, job.first, _n_shared(last.inputs, job.inputs))
        return _Lane((*self.jobs, job), n_common)

    def n_blocks(self, group: KVGroup) -> int:
        """The most blocks that it holds at once in a group of layers."""
        length = max(len(job.inputs) for job in self.jobs)
        after_prefix = -(-length // BLOCK_SIZE) - group.first_block(self.n_common)
        return max(group.n_blocks_for(length, PREFILL_ROWS), after_prefix)


class _Part(NamedTuple):
    """The next inputs of a sequence, from a position on; `blocks` and `n_common` are those of its lane."""

    blocks: SequenceBlocks
    n_common: int
    ids: Sequence[int]
    position: int
    all_logits: bool


class Scorer:
    """Scores sequences in batches; the results do not depend on the batch.

    Args:
        model: the model.
        capacity: the most inputs of a sequence, which are its tokens without the last. The sequences of a step share
            the memory of one sequence of this length, or MAX_LANES blocks if that is more. In layers with a window,
            one sequence holds few blocks; there are enough for MAX_LANES sequences of PREFILL_ROWS inputs.
        single_step: run each sequence separately in a single step, so that a trace has one row for each position.

    Raises:
        MemoryLimitError: the keys and values do not fit in memory.
    """

    def __init__(self, model: LanguageModel, capacity: int, *, single_step: bool = False) -> None:
        most = max(-(-capacity // BLOCK_SIZE), MAX_LANES)
        short = MAX_LANES * PREFILL_ROWS // BLOCK_SIZE
        groups = model.kv_shape.groups
        n_blocks = [
            most if single_step else min(most, max(group.n_blocks_for(most * BLOCK_SIZE, PREFILL_ROWS), short))
            for group in groups
        ]
        require_room(n_blocks, model, f"{most * BLOCK_SIZE} tokens", "free memory")
        self._runner = ModelRunner(model, n_blocks)
        self._pool = BlockPool(groups, n_blocks, n_blocks, max_rows=PREFILL_ROWS, has_prefix_cache=False)
        self._max_scored_rows = model.max_scored_rows
        self._single_step = single_step

    def score_many(self, sequences: Iterable[tuple[Sequence[int], int]]) -> Iterator[Likelihood]:
        """The likelihoods of the last tokens of each sequence after the tokens before them, in order.

        Args:
            sequences: (ids, number of last ids to score), with at least one id before those. At most MAX_JOBS are read
                ahead; an error of the iterator is raised after the results of the sequences before it.

        Raises:
            GenerationError: the logits contain NaN or infinity.
        """
        jobs = (_Job(ids, n_scored) for ids, n_scored in sequences)
        if self._single_step:
            for job in jobs:
                blocks = self._start()
                part = _Part(blocks, len(job.inputs), job.inputs, 0, all_logits=True)
                for _, logits in self._feed([part], len(job.inputs)):
                    job.score(logits[job.first :])
                self._pool.release(blocks)
                yield job.likelihood()
            return
        for lanes in self._lanes(jobs):
            self._score(lanes)
            for lane in lanes:
                yield from (job.likelihood() for job in lane.jobs)

    def perplexity(
        self, ids: Iterable[int], result: Perplexity, progress: Callable[[Perplexity], object] | None = None
    ) -> Perplexity:
        """Adds the windows of a text to a result, and returns it.

        Args:
            ids: the text, consumed as needed.
            result: new; sets window and stride.
            progress: called with the result after each window.

        Raises:
            RequestError: there are fewer than two tokens.
            GenerationError: the logits contain NaN or infinity.
        """
        n_new: deque[int] = deque()

        def sequences() -> Iterator[tuple[list[int], int]]:
            for window, n in sliding_windows(ids, result.window, result.stride):
                n_new.append(n)
                yield window, min(n, len(window) - 1)

        start = perf_counter()
        for logprobs, _ in self.score_many(sequences()):
            result.add(n_new.popleft(), logprobs)
            result.elapsed_s = perf_counter() - start
            if progress is not None:
                progress(result)
        if not result.n_scored:
            raise RequestError("there are no tokens to score", expected="2 tokens or more", found=result.n_ids)
        return result

    def _lanes(self, jobs: Iterable[_Job]) -> Iterator[list[_Lane]]:
        """Groups the jobs into lanes; each list of lanes fits in the blocks."""
        lanes: list[_Lane] = []
        n_jobs = 0
        try:
            for job in jobs:
                if lanes and lanes[-1].shares_prefix(job):
                    longer = [*lanes[:-1], lanes[-1].joined(job)]
                else:
                    longer = [*lanes, _Lane.of(job)]
                if n_jobs == MAX_JOBS or not self._fit(longer):
                    yield lanes
                    longer, n_jobs = [_Lane.of(job)], 0
                lanes, n_jobs = longer, n_jobs + 1
        except RushlightError:  # score the jobs before the error first
            if lanes:
                yield lanes
            raise
        if lanes:
            yield lanes

    def _fit(self, lanes: Sequence[_Lane]) -> bool:
        """Whether the lanes can run together."""
        return len(lanes) <= MAX_LANES and all(
            sum(lane.n_blocks(group) for lane in lanes) <= part.n_blocks
            for group, part in zip(self._pool.groups, self._pool.parts, strict=True)
        )

    def _start(self) -> SequenceBlocks:
        return self._pool.start(self._pool.match_prefix([]))

    def _score(self, lanes: list[_Lane]) -> None:
        """Scores the first jobs of all lanes in one batch, then the second ones, and so on."""
        blocks = [self._start() for _ in lanes]
        computed: list[list[int]] = [[] for _ in lanes]
        for round_ in zip_longest(*(lane.jobs for lane in lanes)):
            prefixes, ends, jobs = [], [], []
            for i, job in enumerate(round_):
                if job is None or job.first == len(job.inputs):
                    continue
                n_cached = min(_n_shared(computed[i], job.inputs), job.first)
                computed[i] = job.inputs
                of_lane = blocks[i], lanes[i].n_common
                if n_cached < job.first:
                    prefixes.append(_Part(*of_lane, job.inputs[n_cached : job.first], n_cached, all_logits=False))
                ends.append(_Part(*of_lane, job.inputs[job.first :], job.first, all_logits=True))
                jobs.append(job)
            for _ in self._feed(prefixes, PREFILL_ROWS):
                pass
            for i, logits in self._feed(ends, self._max_scored_rows):
                jobs[i].score(logits)
        for each in blocks:
            self._pool.release(each)

    def _feed(self, parts: Sequence[_Part], max_rows: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Runs parts of different sequences, at most max_rows rows in a step: (index of the part, its next logits)."""
        n_computed = [0] * len(parts)
        while True:
            step: dict[int, Chunk] = {}
            left = max_rows
            for i, (blocks, _, inputs, position, all_logits) in enumerate(parts):
                if ids := inputs[n_computed[i] : n_computed[i] + left]:
                    start = position + n_computed[i]
                    self._pool.grow(blocks, start + len(ids))
                    table, *others = blocks.views
                    step[i] = Chunk(ids, start, table, all_logits, others)
                    n_computed[i] += len(ids)
                    left -= len(ids)
            if not step:
                return
            logits = self._runner(list(step.values()))
            at = 0
            for i, chunk in step.items():
                part = parts[i]
                self._pool.commit(part.blocks, (), min(part.position + n_computed[i], part.n_common))
                n = len(chunk.ids) if chunk.all_logits else 1
                yield i, logits[at : at + n]
                at += n


def _n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _likelihood(logits: NDArray[np.floating], targets: Sequence[int]) -> Likelihood:
    """(R, V) logits, R token ids -> their log-probabilities, and whether each is the most likely token."""
    return Likelihood(logprobs_of(logits, targets), logits.argmax(axis=1) == np.asarray(targets))


@dataclass(slots=True)
class Perplexity:
    """The perplexity of a text, updated window by window.

    Windows begin every `stride` tokens, and each scores the tokens after the end of the previous one, as in
    transformers' guide "Perplexity of fixed-length models".

    Attributes:
        window, stride: in tokens.
        n_windows: windows so far.
        n_ids: tokens of the text so far, including the tokenizer's prefix.
        n_scored: scored tokens: all but the first of the text, or of each window if windows do not overlap.
        nll_sum: the sum of their negative log-likelihoods, in nats.
        n_bytes: of the text in UTF-8; None if only token ids were given.
        n_prefix: tokens of the tokenizer's prefix.
        elapsed_s: seconds so far.
    """

    window: int
    stride: int
    n_windows: int = 0
    n_ids: int = 0
    n_scored: int = 0
    nll_sum: float = 0.0
    n_bytes: int | None = None
    n_prefix: int = 0
    elapsed_s: float = 0.0
    _guide_sum: float = 0.0
    _guide_weight: int = 0

    @classmethod
    def within(cls, context_length: int, window: int | None = None, stride: int | None = None) -> Self:
        """An empty result; the window defaults to the context length, and the stride to 512, or the window if less.

        Raises:
            RequestError: window or stride is out of range.
        """
        window = context_length if window is None else window
        if not isinstance(window, int) or not 2 <= window <= context_length:
            raise RequestError(f"the window is {window!r} tokens", expected=f"2 to {context_length}, the context")
        stride = min(DEFAULT_STRIDE, window) if stride is None else stride
        if not isinstance(stride, int) or not 1 <= stride <= window:
            raise RequestError(f"the stride is {stride!r} tokens", expected=f"1 to {window}, the window")
        return cls(window, stride)

    def add(self, n_new: int, logprobs: NDArray[np.float64]) -> None:
        """Adds a window with `n_new` new tokens, of which len(logprobs) are scored: all, or all but the first."""
        nll = -math.fsum(logprobs)
        self.n_windows += 1
        self.n_ids += n_new
        self.n_scored += len(logprobs)
        self.nll_sum += nll
        if len(logprobs):
            self._guide_sum += nll / len(logprobs) * (n_new - 1)
            self._guide_weight += n_new - 1

    def count_bytes(self, n_bytes: int) -> None:
        """Adds to the bytes of the text."""
        self.n_bytes = (self.n_bytes or 0) + n_bytes

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of the scored tokens, in nats; NaN before the first."""
        return self.nll_sum / self.n_scored if self.n_scored else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return _exp(self.nll)

    @property
    def guide_perplexity(self) -> float:
        """The perplexity exactly as the loop in transformers' guide computes it.

        The guide weights a window that overlaps the previous one by one token fewer than it scores. At usual strides
        the two agree to four digits or more; at a stride of 1 the guide counts only the first window.
        """
        return _exp(self._guide_sum / self._guide_weight if self._guide_weight else math.nan)

    @property
    def bits_per_byte(self) -> float | None:
        """The nll in bits, times tokens per byte (Gao et al., arXiv:2101.00027, 3.1): comparable across tokenizers."""
        return self.nll / math.log(2) * (self.n_ids - self.n_prefix) / self.n_bytes if self.n_bytes else None

    @property
    def tok_s(self) -> float:
        """Tokens of the text per second; overlapping windows run more tokens through the model."""
        return self.n_ids / self.elapsed_s if self.elapsed_s else 0.0


def sliding_windows(ids: Iterable[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Windows over the token ids of a text, each with the number of tokens at its end that are not in the previous one.

    Args:
        ids: consumed as needed: a window, and one more id to see whether it is the last.
        window: tokens per window; the last may have fewer.
        stride: tokens from the start of one window to the next; at most `window`.
    """
    ids = iter(ids)
    buffer: list[int] = []
    n_old = 0
    while True:
        buffer += islice(ids, window + 1 - len(buffer))
        current = buffer[:window]
        if len(current) > n_old:
            yield current, len(current) - n_old
        if len(buffer) <= window:
            return
        del buffer[:stride]
        n_old = window - stride


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 709 else nll * math.inf  # beyond a double; NaN stays
