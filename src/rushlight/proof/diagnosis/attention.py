"""Finds why attention diverges: the number of heads, the scale, the mask, or the order of q, k and v."""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rushlight.proof.diagnosis.trial import ITS_INPUT, Floats, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["attention"]

MAX_SCORES = 2**22
"""The largest T·T·H that is tried."""


class _Attention(NamedTuple):
    """A variant of attention on the same queries, keys and values."""

    n_head: int
    scale: float
    mask: str
    order: tuple[int, int, int]


def _visible(mask: str, n: int) -> Floats:
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    return {
        "causal": j <= i,
        "no": j >= 0 * i,
        "a causal mask that also shows the next token": j <= i + 1,
        "a causal mask that hides the token itself": (j < i) | (i == 0) & (j == 0),
    }[mask]


MASKS = ("causal", "no", "a causal mask that also shows the next token", "a causal mask that hides the token itself")


def attention(module: Module, trial: Trial) -> str:
    """How two variants of attention differ that give the port's array and the recorded one; empty if none do.

    Queries, keys and values are the thirds of a recorded output, or three outputs of the same shape. Grouped keys and
    rotary embeddings are not tried.
    """
    if trial.recorded.ndim != 2:
        return ""
    n, c = trial.recorded.shape
    same = [source.values for source in trial.sources if source.values.shape == (n, c) and source.name != ITS_INPUT]
    wide = [source.values for source in trial.sources if source.values.shape == (n, 3 * c)]
    if wide:
        parts = np.split(wide[-1].astype(np.float64), 3, axis=-1)
    elif len(same) >= 3:
        parts = [values.astype(np.float64) for values in same[-3:]]
    else:
        return ""
    declared = getattr(module, "n_head", None)
    heads = [h for h in range(1, min(c, 64) + 1) if c % h == 0 and n * n * h <= MAX_SCORES]
    heads.sort(key=lambda h: h != declared)
    layer = number if isinstance(number := getattr(module, "layer", None), int) else 0

    def fits(way: _Attention, target: NDArray[Any]) -> bool:
        return trial.fits(_attend(parts, way), target)

    def scales(h: int) -> list[float]:
        usual = 1 / math.sqrt(c // h)
        return [usual, usual / (layer + 1), 1.0, 1.0 / (layer + 1), 1 / (c // h), 1 / math.sqrt(c)]

    plain = (0, 1, 2)
    ways = [
        _Attention(h, scale, mask, plain) for h in heads for mask in MASKS[:2] for scale in dict.fromkeys(scales(h))
    ]
    theirs = next((way for way in ways if fits(way, trial.recorded)), None)
    if theirs is None:
        return ""
    changes = [theirs._replace(scale=scale) for scale in scales(theirs.n_head)]
    changes += [theirs._replace(mask=mask) for mask in MASKS]
    changes += [theirs._replace(order=(order[0], order[1], order[2])) for order in permutations(plain)]
    changes += [theirs._replace(n_head=h) for h in heads]
    changes += [theirs._replace(n_head=h, scale=scale) for h in heads for scale in scales(h)]
    mine = next((way for way in changes if way != theirs and fits(way, trial.found)), None)
    root = "1/√head_dim" if math.isclose(theirs.scale, 1 / math.sqrt(c // theirs.n_head)) else f"{theirs.scale:.4g}"
    if mine is None:
        return (
            f"the recording has attention with {theirs.n_head} heads, scale {root} and {theirs.mask} mask; the port's"
            " variant is unknown"
        )
    differences = []
    if mine.n_head != theirs.n_head:
        differences.append(f"{mine.n_head} heads where the recording has {theirs.n_head}")
    if mine.scale != theirs.scale:
        scale = "no scale" if mine.scale == 1 else f"a scale of {mine.scale:.4g}"
        differences.append(f"{scale} where the recording has {root}")
    if mine.mask != theirs.mask:
        mask = {"causal": "a causal mask", "no": "no mask"}
        differences.append(f"{mask.get(mine.mask, mine.mask)} where the recording has {mask[theirs.mask]}")
    if mine.order != theirs.order:
        names = ", ".join("qkv"[i] for i in mine.order)
        exchanged = mine.order == (1, 0, 2)
        differences.append("q and k swapped" if exchanged else f"{names} for q, k, v")
    return f"attention with {' and '.join(differences)}"


def _attend(parts: Sequence[Floats], way: _Attention) -> Floats:
    """Attention by the textbook formula, (T, C)."""
    n, c = parts[0].shape
    q, k, v = (parts[i].reshape(n, way.n_head, -1).swapaxes(0, 1) for i in way.order)
    scores = np.where(_visible(way.mask, n), q @ k.swapaxes(1, 2) * way.scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    heads = weights / weights.sum(axis=-1, keepdims=True) @ v
    result: Floats = heads.swapaxes(0, 1).reshape(n, c)
    return result
