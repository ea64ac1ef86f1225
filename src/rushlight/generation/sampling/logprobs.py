"""Log-probabilities of tokens, and the errors for logits from which no token can be sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray


_COLUMNS = 8192
"""Logits of a row whose exponentials are in memory at a time."""

_SEGMENT = 64
"""Logits with a common maximum, among which the most likely tokens are sought first."""


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
        values -= _log_of_sum(logits)
        return values


def logprobs_of(logits: NDArray[Any], ids: Sequence[int]) -> NDArray[np.float64]:
    """(R, V) logits, R token ids -> (R,) the log-probability of each id in its row, bit-identical to `log_softmax`."""
    return _logprobs_at(logits, np.asarray(ids)[:, None])[:, 0]


def token_logprob(logits: NDArray[np.floating], token: int, n_top: int) -> TokenLogprob:
    """(V,) logits -> the log-probability of `token`, and the n_top most likely tokens."""
    top = largest(logits, n_top).tolist()
    logprob, *of_top = _logprobs_at(logits, np.array([token, *top])).tolist()
    return TokenLogprob(token, logprob, tuple(zip(top, of_top, strict=True)))


def largest(values: NDArray[np.floating], n: int) -> NDArray[np.int64]:
    """(V,) -> the indices of the n largest values, largest first; equals in their order. With NaN, perhaps none."""
    if n == 0:
        return np.empty(0, np.int64)
    maxima = values[: values.size // _SEGMENT * _SEGMENT].reshape(-1, _SEGMENT).max(axis=1)
    # n segments have a maximum of at least `least`, so the n-th largest value is at least that.
    least = np.partition(maxima, -n)[-n] if n <= maxima.size else -np.inf
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")][:n]


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
    values: NDArray[np.float64] = logits - _maximum(logits)
    return values


def _logprobs_at(logits: NDArray[Any], ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """(..., V) logits, (..., K) token ids -> (..., K) log-probabilities, bit-identical to `log_softmax`."""
    with np.errstate(invalid="ignore"):
        values: NDArray[np.float64] = np.take_along_axis(logits, ids, axis=-1) - _maximum(logits)
        values -= _log_of_sum(logits)
        return values


def _log_of_sum(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(..., V) -> (..., 1) the logarithm of the sum of exp(logit - maximum), without an array of V doubles."""
    most = _maximum(logits)
    total = np.zeros_like(most)
    for start in range(0, logits.shape[-1], _COLUMNS):
        part = logits[..., start : start + _COLUMNS] - most
        total += np.exp(part, out=part).sum(axis=-1, keepdims=True)
    return np.log(total)


def _maximum(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(..., V) -> (..., 1) the maximum of each row, in float64."""
    most: NDArray[np.float64] = logits.max(axis=-1, keepdims=True).astype(np.float64)
    return most
