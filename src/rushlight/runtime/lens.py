"""The logit lens: applies a model's final norm and head to the residual stream after each block.

The result is the next tokens that the model would predict after each block. From nostalgebraist, "interpreting GPT: the
logit lens", 2020.
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


@dataclass(frozen=True, slots=True)
class Lens:
    """The K most likely next tokens after each of L blocks, at each of T positions.

    Attributes:
        blocks: the paths of the blocks, in the order of the forward. The tokens after the last block are the model's.
        prompt_ids: all tokens of the prompt.
        first: the first of the T positions.
        top_ids: (L, T, K) the most likely tokens, most likely first.
        top_probabilities: (L, T, K) float64, their probabilities.
    """

    blocks: list[str]
    prompt_ids: list[int]
    first: int
    top_ids: NDArray[np.int64]
    top_probabilities: NDArray[np.float64]


def lens(model: Model, prompt: str | Sequence[int], *, last: int | None = None, top_k: int = 5) -> Lens:
    """Applies the logit lens to a prompt.

    Args:
        model: a model whose class has a method `readout`, (N, C) -> (N, V): its final norm and head.
        prompt: text, or token ids; at least one token.
        last: the number of last positions to return; None for all.
        top_k: K, the tokens for each position and block.

    Raises:
        RequestError: the prompt is empty or too long, an argument is out of range, or the model has no readout.
    """
    module = model.module
    if not callable(getattr(module, "readout", None)):
        raise RequestError(
            f"{type(module).__name__} has no method readout",
            remedy="add one that applies the final norm and the head: readout(x)",
        )
    if top_k < 1 or (last is not None and last < 1):
        raise RequestError("last and top_k must be 1 or more")
    blocks = _blocks(module)
    ids = model.prompt_ids(prompt)
    with model.trace(*blocks) as trace:
        model.logits(ids)
    first = max(0, len(ids) - last) if last else 0
    n_rows = model.language_model.max_scored_rows
    top = [_top(module, trace[path][first:], top_k, n_rows) for path in blocks]
    return Lens(blocks, ids, first, np.stack([ids for ids, _ in top]), np.stack([p for _, p in top]))


def _blocks(module: Module) -> list[str]:
    """The paths of the blocks, which are the modules of the longest ModuleList."""
    lists = [(path, part) for path, part in module.named_modules() if isinstance(part, ModuleList)]
    if not lists:
        raise RequestError(f"{type(module).__name__} has no ModuleList of blocks")
    path, longest = max(lists, key=lambda found: len(found[1]))
    return [f"{path}.{i}" for i in range(len(longest))]


def _top(
    module: Any, stream: NDArray[np.floating], k: int, n_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(T, C) residual stream after a block -> (T, k) the most likely tokens, and (T, k) their probabilities.

    Args:
        n_rows: the most rows whose logits are in memory at a time.
    """
    ids, probabilities = [], []
    for start in range(0, len(stream), n_rows):
        x = module.ops.from_numpy(stream[start : start + n_rows])
        weights = softmax(module.ops.to_numpy(module.readout(x)))
        k = min(k, weights.shape[1])
        best = np.argpartition(weights, -k, axis=1)[:, -k:]
        found = np.take_along_axis(weights, best, axis=1)
        order = np.lexsort((best, -found), axis=1)
        ids.append(np.take_along_axis(best, order, axis=1))
        probabilities.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(ids), np.concatenate(probabilities)
