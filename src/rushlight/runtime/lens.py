"""The logit lens: what each block of a model would say next, if it were the last one.

After nostalgebraist, "interpreting GPT: the logit lens", 2020: the residual stream after a block, read by the model's
own final norm and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import RequestError
from rushlight.generation.sampling.logprobs import softmax
from rushlight.nn import ModuleList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rushlight.nn import Module
    from rushlight.runtime.model import Model

ROWS_AT_ONCE = 64
"""Rows whose logits are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Lens:
    """The likeliest next tokens after each of L blocks, at each of T positions.

    Attributes:
        blocks: the paths of the blocks, in the order of the forward. The last one's tokens are the model's own.
        prompt_ids: all the tokens of the prompt.
        first: the position of the first of the T.
        top_ids: (L, T, K) the likeliest tokens, the likeliest first.
        top_probabilities: (L, T, K) float64, theirs.
    """

    blocks: list[str]
    prompt_ids: list[int]
    first: int
    top_ids: NDArray[np.int64]
    top_probabilities: NDArray[np.float64]


def lens(model: Model, prompt: str | Sequence[int], *, last: int | None = None, top_k: int = 5) -> Lens:
    """Looks through the logit lens at a prompt.

    Args:
        model: one whose class has a method `readout`, (N, C) -> (N, V): its final norm and head.
        prompt: text, or token ids; at least one token.
        last: only the last so many positions; None is all.
        top_k: how many tokens at each position and block.

    Raises:
        RequestError: there is nothing to look at, the prompt does not fit, or the model has no readout.
    """
    module = model.module
    if not callable(getattr(module, "readout", None)):
        raise RequestError(
            f"{type(module).__name__} does not say how a block's output becomes logits",
            remedy="give its class a method readout(x): the final norm and the head",
        )
    if top_k < 1 or (last is not None and last < 1):
        raise RequestError("a lens needs at least one position and one token")
    blocks = _blocks(module)
    ids = model.prompt_ids(prompt)
    with model.trace(*blocks) as trace:
        model.logits(ids)
    first = max(0, len(ids) - last) if last else 0
    top = [_top(module, trace[path][first:], top_k) for path in blocks]
    return Lens(blocks, ids, first, np.stack([ids for ids, _ in top]), np.stack([p for _, p in top]))


def _blocks(module: Module) -> list[str]:
    """The paths in the model's longest list of modules."""
    lists = [(path, part) for path, part in module.named_modules() if isinstance(part, ModuleList)]
    if not lists:
        raise RequestError(f"{type(module).__name__} has no list of blocks")
    path, longest = max(lists, key=lambda found: len(found[1]))
    return [f"{path}.{i}" for i in range(len(longest))]


def _top(module: Any, stream: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(T, C) after a block -> the k likeliest tokens (T, k) and their probabilities."""
    ids, probabilities = [], []
    for start in range(0, len(stream), ROWS_AT_ONCE):
        x = module.ops.from_numpy(stream[start : start + ROWS_AT_ONCE])
        weights = softmax(module.ops.to_numpy(module.readout(x)))
        k = min(k, weights.shape[1])
        best = np.argpartition(weights, -k, axis=1)[:, -k:]
        found = np.take_along_axis(weights, best, axis=1)
        order = np.lexsort((best, -found), axis=1)
        ids.append(np.take_along_axis(best, order, axis=1))
        probabilities.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(ids), np.concatenate(probabilities)
