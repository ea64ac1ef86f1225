"""From logits to the next token."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from rushlight.errors import GenerationError
from rushlight.generation.philox import uniform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rushlight.generation.params import SamplingParams


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    The draw at a position depends on the logits, the seed and the position alone: a sequence comes out the same
    whatever is generated beside it.

    Args:
        params: how to choose.
        vocab_size: V.
        prompt_ids: what stands before the text; only the repetition penalty looks at it.
        barred: ids never to be chosen, because no token has them.

    Raises:
        RequestError: `params` names tokens that the vocabulary does not have.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt_ids: Iterable[int] = (),
        barred: NDArray[np.int32] | None = None,
    ) -> None:
        params.check_vocabulary(vocab_size)
        self.params = params
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)
        self._barred = barred
        self._seen = np.zeros(vocab_size, bool)  # in the prompt or the text
        self._seen[list(prompt_ids)] = True
        self._counts = np.zeros(vocab_size, np.int32)  # in the text

    def choose(self, logits: NDArray[np.floating], position: int) -> int:
        """The token to stand at `position`, given the (V,) logits for it; it then belongs to the text.

        Raises:
            GenerationError: the logits hold NaN or infinity, or no token is left.
        """
        logits = self._adjusted(logits)
        best = int(np.argmax(logits))  # a NaN counts as the greatest
        if not np.isfinite(logits[best]):
            raise GenerationError(
                f"the model's logits at position {position} have no finite maximum: {logits[best]}",
                remedy="look for NaN or infinity in the weights",
            )
        token = best if self.params.temperature == 0 else self._draw(probabilities(logits, self.params), position)
        self._seen[token] = True
        self._counts[token] += 1
        return token

    def _adjusted(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """The logits after penalties and biases, as a copy where there are any."""
        params = self.params
        if params.repetition_penalty != 1:
            penalised = np.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits = np.where(self._seen, penalised, logits)
        if params.presence_penalty or params.frequency_penalty:
            logits = logits - params.presence_penalty * (self._counts > 0) - params.frequency_penalty * self._counts
        if params.logit_bias:
            logits = logits.copy()
            logits[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), logits.dtype)
        if self._barred is not None:
            logits = logits.copy()
            logits[self._barred] = -np.inf
        return logits

    def _draw(self, weights: NDArray[np.float64], position: int) -> int:
        cumulative = np.cumsum(weights)
        token = np.searchsorted(cumulative, uniform(self.seed, position) * cumulative[-1], side="right")
        return int(min(token, np.flatnonzero(weights)[-1]))  # rounding may reach the very end


def probabilities(logits: NDArray[np.floating], params: SamplingParams) -> NDArray[np.float64]:
    """(V,) logits -> (V,) unnormalised probabilities after temperature, top-k, top-p and min-p; 0 for what is left out.

    As transformers' logits processors in the same order: equals at the edge of top-k all stay, and top-p keeps the
    fewest tokens, likeliest first, whose probabilities reach it.
    """
    scaled = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < scaled.size:
        least = np.partition(scaled, -params.top_k)[-params.top_k]
        scaled[scaled < least] = -np.inf
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    if params.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        n_kept = np.searchsorted(cumulative, params.top_p * cumulative[-1]) + 1
        weights[order[n_kept:]] = 0
    if params.min_p > 0:
        weights[weights < params.min_p * weights.max()] = 0
    return weights
