"""How likely tokens were: log-probabilities of the model itself, before any setting changes its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_FINITE_REMEDY = "look for NaN or infinity in the weights, or compute in f32"
"""What to do about logits that are not finite."""
NONE_ALLOWED_REMEDY = (
    "look at what json_schema or regex demands, and at the tokens that generation_config.json forbids or the tokenizer "
    "does not have"
)
"""What to do where every token is ruled out."""


class TokenLogprob(NamedTuple):
    """How likely a token was at its place.

    Natural logarithms of the softmax of the model's own logits, in float64: before penalties, biases, temperature and
    all that leaves tokens out, as in OpenAI's API and, by default, in vLLM.

    Attributes:
        id: the token.
        logprob: its own.
        top: the likeliest tokens there, (id, logprob), likeliest first, equals in the order of ids; as many as were
            asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.floating], token: int, n_top: int) -> TokenLogprob:
    """(V,) logits -> how likely `token` was, and the n_top likeliest."""
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite gives NaN, for the caller to see
        values -= values.max()
        values -= np.log(np.exp(values).sum())
    top: list[int] = []
    if n_top:
        least = np.partition(values, -n_top)[-n_top] if n_top < values.size else -np.inf
        candidates = np.flatnonzero(values >= least)
        top = candidates[np.argsort(-values[candidates], kind="stable")][:n_top].tolist()
    return TokenLogprob(token, float(values[token]), tuple((i, float(values[i])) for i in top))
