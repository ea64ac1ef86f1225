"""From logits to the next token."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rushlight.errors import GenerationError
from rushlight.generation.philox import uniform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Draw
    from rushlight.generation.params import SamplingParams


class Constraint(Protocol):
    """What may come next in one text; `rushlight.text.constraint.Constraint` is one."""

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): whether each token may be the next."""
        ...

    def take(self, token: int, /) -> None:
        """Takes the token that was chosen."""
        ...


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    The draw at a position depends on the logits, the seed and the position alone: a sequence comes out the same
    whatever is generated beside it.

    Args:
        params: how to choose.
        vocab_size: V.
        prompt_ids: what stands before the text; only the repetition penalty looks at it.
        barred: ids never to be chosen, because no token has them.
        draw: draws a token; None is the one in NumPy below.
        constraint: what the text must match.

    Raises:
        RequestError: `params` names tokens that the vocabulary does not have.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt_ids: Iterable[int] = (),
        barred: NDArray[np.int32] | None = None,
        draw: Draw | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        params.check_vocabulary(vocab_size)
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)
        self._barred = barred
        self._constraint = constraint
        self._draw = _draw if draw is None else draw
        self._seen = dict.fromkeys(prompt_ids, 0)
        """The tokens of prompt and text, each with how often it stands in the text."""

    def choose(self, logits: NDArray[np.floating], position: int) -> int:
        """The token to stand at `position`, given the (V,) logits for it; it then belongs to the text.

        Raises:
            GenerationError: the logits hold NaN or infinity, or no token is left.
        """
        token = self.peek(logits, position)
        self._seen[token] = self._seen.get(token, 0) + 1
        if self._constraint is not None:
            self._constraint.take(token)
        return token

    def peek(self, logits: NDArray[np.floating], position: int) -> int:
        """The same, and it belongs to nothing yet."""
        params, logits = self.params, self._adjusted(logits)
        best = int(np.argmax(logits))  # a NaN counts as the greatest
        if not np.isfinite(logits[best]):
            raise GenerationError(
                f"the model's logits at position {position} have no finite maximum: {logits[best]}",
                remedy="look for NaN or infinity in the weights",
            )
        if params.temperature == 0:
            return best
        share = uniform(self.seed, position)
        return self._draw(logits, params.temperature, params.top_k, params.top_p, params.min_p, share)

    def _adjusted(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """The logits after penalties and biases, as a copy where there are any."""
        params = self.params
        repeats = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        if not (repeats or params.logit_bias or self._barred is not None or self._constraint is not None):
            return logits
        logits = logits.copy()
        if repeats:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            counts = np.fromiter(self._seen.values(), np.int64, len(self._seen))
            values = logits[seen]
            values = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
            logits[seen] = values - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts
        if params.logit_bias:
            logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), logits.dtype)
        if self._barred is not None:
            logits[self._barred] = -np.inf
        if self._constraint is not None:
            logits[~self._constraint.allowed()] = -np.inf
        return logits


def _draw(
    logits: NDArray[np.floating], temperature: float, top_k: int, top_p: float, min_p: float, share: float
) -> int:
    """The token at `share` of the running sum of the probabilities, in the order of ids."""
    weights = probabilities(logits, temperature, top_k, top_p, min_p)
    cumulative = np.cumsum(weights)
    token = np.searchsorted(cumulative, share * cumulative[-1], side="right")
    return int(min(token, np.flatnonzero(weights)[-1]))  # rounding may reach the very end


def probabilities(
    logits: NDArray[np.floating], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """(V,) logits -> (V,) unnormalised probabilities after temperature, top-k, top-p and min-p; 0 for what is left out.

    As transformers' logits processors in the same order: equals at the edge of top-k all stay, and top-p keeps the
    fewest tokens, likeliest first, whose probabilities reach it.
    """
    scaled = logits.astype(np.float64) / temperature
    if 0 < top_k < scaled.size:
        least = np.partition(scaled, -top_k)[-top_k]
        scaled[scaled < least] = -np.inf
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        n_kept = np.searchsorted(cumulative, top_p * cumulative[-1]) + 1
        weights[order[n_kept:]] = 0
    if min_p > 0:
        weights[weights < min_p * weights.max()] = 0
    return weights
