"""How likely given tokens are: log-probabilities behind a prompt, and perplexity over sliding windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.errors import GenerationError
from rushlight.generation.context import Context

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.batch import KVShape
    from rushlight.backends.protocol import Backend
    from rushlight.generation.context import Forward

SCORED_ROWS = 64
"""Rows whose logits are held at once: 64 of GPT-2's are 39 MB with their float64 copy, a whole window 620 MB."""


class Likelihood(NamedTuple):
    """Of the tokens that were scored.

    Attributes:
        logprobs: (n,) natural logarithms of their probabilities, float64.
        greedy: (n,) whether each was the likeliest token where it stands.
    """

    logprobs: NDArray[np.float64]
    greedy: NDArray[np.bool_]


class Scorer:
    """Scores sequences one after another; what a sequence begins with as the last one did is not computed again.

    Args:
        forward: the model.
        backend: the device it runs on.
        kv_shape: what it keeps of every position.
        capacity: the most tokens that a sequence has, its last not counted: nothing follows that one.
        in_one_piece: run each sequence at once and from its beginning, for whoever looks at the rows.
    """

    def __init__(
        self, forward: Forward, backend: Backend, kv_shape: KVShape, capacity: int, *, in_one_piece: bool = False
    ) -> None:
        self._context = Context(forward, backend, kv_shape, capacity)
        self._in_one_piece = in_one_piece
        self._fed: list[int] = []

    def score(self, ids: Sequence[int], n_scored: int) -> Likelihood:
        """The likelihood of the last `n_scored` of `ids`, each given all before it: at least one stands before them.

        Raises:
            GenerationError: the logits hold NaN or infinity.
        """
        if n_scored == 0:
            return Likelihood(np.empty(0), np.empty(0, np.bool_))
        inputs, first = list(ids[:-1]), len(ids) - 1 - n_scored  # the row of `first` has the first logits wanted
        parts = [_likelihood(logits, ids[at + 1 : at + 1 + len(logits)]) for at, logits in self._logits(inputs, first)]
        likelihood = Likelihood(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        if not np.isfinite(likelihood.logprobs).all():
            position = first + 1 + int(np.argmin(np.isfinite(likelihood.logprobs)))
            raise GenerationError(
                f"the model's logits for position {position} are not finite",
                remedy="look for NaN or infinity in the weights",
            )
        return likelihood

    def _logits(self, inputs: list[int], first: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """(R, V) logits behind the rows from `first` on, some rows at a time, each time with the first of them."""
        context = self._context
        if self._in_one_piece:
            context.length = 0
            yield first, context.feed(inputs, all_logits=True, chunk_rows=len(inputs))[first:]
            return
        pairs = zip(self._fed, inputs[:first], strict=False)
        context.length = known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._fed = inputs
        if known < first:
            context.feed(inputs[known:first])
        for start in range(first, len(inputs), SCORED_ROWS):
            yield start, context.feed(inputs[start : start + SCORED_ROWS], all_logits=True)


def _likelihood(logits: NDArray[np.floating], targets: Sequence[int]) -> Likelihood:
    """(R, V) logits, R token ids -> their log-softmax in float64, and whether they are the likeliest."""
    rows = np.arange(len(targets))
    greedy = logits.argmax(axis=1) == np.asarray(targets)
    with np.errstate(all="ignore"):  # what is not finite is told of above
        shifted = logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        chosen = shifted[rows, targets]
        return Likelihood(chosen - np.log(np.exp(shifted, out=shifted).sum(axis=1)), greedy)


@dataclass(slots=True)
class Perplexity:
    """The perplexity of a text, as its windows are added.

    Windows begin every `stride` tokens, and each scores the tokens that the one before did not reach, as in
    transformers' guide "Perplexity of fixed-length models".

    Attributes:
        window, stride: in tokens.
        n_windows: so far.
        n_ids: tokens of the text so far.
        n_scored: those that were predicted: not the first, and where windows do not overlap, not the first of any.
        nll_sum: negative log-likelihood of those together, in nats.
        n_bytes: of the text in UTF-8; None where only token ids were given.
        elapsed_s: seconds so far.
    """

    window: int
    stride: int
    n_windows: int = 0
    n_ids: int = 0
    n_scored: int = 0
    nll_sum: float = 0.0
    n_bytes: int | None = None
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
        return self.nll / math.log(2) * self.n_ids / self.n_bytes if self.n_bytes else None

    @property
    def tok_s(self) -> float:
        """Tokens of the text a second; where windows overlap, more go through the model."""
        return self.n_ids / self.elapsed_s if self.elapsed_s else 0.0


def windows(ids: Iterable[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
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
