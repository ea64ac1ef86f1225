"""Log-probabilities of tokens, and the errors for logits from which no token can be sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray


class TokenLogprob(NamedTuple):
    """The log-probability of a token, and the most likely tokens at its position.

    Natural logarithms of the softmax of the model's logits, in float64: before penalties, biases, temperature and
    everything that excludes tokens, as in OpenAI's API and, by default, in vLLM.

    Attributes:
        id: the token.
        logprob: its log-probability.
        top: the requested number of most likely tokens, (id, logprob), most likely first; equals in the order of ids.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(..., V) logits -> probabilities, in float64. A row with NaN or infinity gives NaN."""
    with np.errstate(invalid="ignore"):
        values = _shifted(logits)
        np.exp(values, out=values)
        values /= values.sum(axis=-1, keepdims=True)
        return values


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(..., V) logits -> log-probabilities, in float64. A row with NaN or infinity gives NaN."""
    with np.errstate(invalid="ignore"):
        values = _shifted(logits)
        values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
        return values


def logprobs_of(logits: NDArray[Any], ids: Sequence[int]) -> NDArray[np.float64]:
    """(R, V) logits, R token ids -> (R,) the log-probability of each id in its row, bit-identical to `log_softmax`."""
    with np.errstate(invalid="ignore"):
        values = _shifted(logits)
        logprobs: NDArray[np.float64] = values[np.arange(len(ids)), ids]
        logprobs -= np.log(np.exp(values, out=values).sum(axis=-1))
        return logprobs


def token_logprob(logits: NDArray[np.floating], token: int, n_top: int) -> TokenLogprob:
    """(V,) logits -> the log-probability of `token`, and the n_top most likely tokens."""
    values = log_softmax(logits)
    top: list[int] = []
    if n_top:
        least = np.partition(values, -n_top)[-n_top] if n_top < values.size else -np.inf
        candidates = np.flatnonzero(values >= least)
        top = candidates[np.argsort(-values[candidates], kind="stable")][:n_top].tolist()
    return TokenLogprob(token, float(values[token]), tuple((i, float(values[i])) for i in top))


def not_finite(position: int) -> GenerationError:
    """The error for NaN or infinity in the logits for the token at `position`."""
    return GenerationError(
        f"the model's logits for position {position} are not finite",
        remedy="look for NaN or infinity in the weights, or compute in f32",
    )


def no_valid_token(position: int) -> GenerationError:
    """The error for a position at which every token is excluded."""
    return GenerationError(
        f"no valid token at position {position}",
        remedy="check json_schema or regex, the tokens that generation_config.json suppresses, and the ids that the "
        "tokenizer does not use",
    )


def _shifted(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The logits in float64, minus the maximum of each row, so that exp cannot overflow."""
    values: NDArray[np.float64] = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values
