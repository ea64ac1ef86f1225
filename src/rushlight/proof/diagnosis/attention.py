"""Finds why attention diverges: heads, scale, mask, window, rotary embedding, or the order of q, k and v.

A way of attention is one setting of all of these. The ways that differ in one respect from the port's own are tried
until one gives the recorded array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rushlight.proof.compare import distance
from rushlight.proof.diagnosis.operations import AttentionCall
from rushlight.proof.diagnosis.rotary import PAIRINGS, angles_of, turned
from rushlight.proof.diagnosis.trial import ITS_INPUT, Floats, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["SOFTCAPS", "attention"]

MAX_SCORES = 2**20
"""The largest T·T·H that is tried; of longer prompts the first rows are."""
MAX_WINDOW_SCORES = 2**22
"""The same for attention with a window, which shows only in the rows behind it."""
MASKS = {
    "causal": "a causal mask",
    "no": "no mask",
    "next": "a causal mask that also shows the next token",
    "strict": "a causal mask that hides the token itself",
}
THETAS = (1e4, 5e5, 1e6, 1e5, 2e6, 5e6, 1e3)
FRACTIONS = (1, 0.25, 0.5, 0.75, 0.4)
FACTORS = (1, 2, 4, 8)
SOFTCAPS = (50.0, 30.0, 20.0)
Q_K_V = (0, 1, 2)
OWN = "its own"
"""The name of the angles that the port passes."""
RECORDED = "the recorded angles"
FUSED = {"parts": "q, k and v one after the other", "heads": "q, k and v by head"}
GROUPS = {"repeated": "query head h reading key head h·K // H", "tiled": "query head h reading key head h % K"}


class _Way(NamedTuple):
    """A way to compute attention from the same queries, keys and values.

    Attributes:
        n_head: H.
        scale: of the scores.
        mask: a key of MASKS.
        window: how many positions a row sees; None is all.
        order: which of the arrays are q, k and v.
        groups: a key of GROUPS.
        fused: a key of FUSED: how the columns of a fused projection are laid out.
        softcap: of the scores, or None.
        slopes: whether ALiBi's slopes are added.
        rotated: which of q and k are turned: "qk", "q", "k" or "".
        interleaved: which channels are paired.
        angles: the name of the angles.
    """

    n_head: int
    scale: float
    mask: str = "causal"
    window: int | None = None
    order: tuple[int, ...] = Q_K_V
    groups: str = "repeated"
    fused: str = "parts"
    softcap: float | None = None
    slopes: bool = False
    rotated: str = ""
    interleaved: bool = False
    angles: str = OWN


def attention(module: Module, trial: Trial) -> str:
    """How two ways of attention differ that give the port's array and the recorded one; empty if none do.

    Queries, keys and values are those of the port's call of `attention`. If it computes attention itself, they are the
    thirds of a recorded output, or three outputs of the same shape.
    """
    if trial.recorded.ndim != 2:
        return ""
    call = trial.noted.attention or _assumed(module, trial)
    if call is None or call.q.shape != trial.recorded.shape:
        return ""
    ways = _Ways(call, tuple(trial.angles))
    n = ways.n_rows
    found, recorded = trial.found[:n], trial.recorded[:n]

    def first(target: NDArray[Any]) -> _Way | None:
        way = next((way for way in ways.all() if trial.fits(ways.computed(way), target)), None)
        return way or ways.with_fitted_scale(trial, target)

    theirs = first(recorded)
    if theirs is None:
        return ""
    mine = first(found)
    if mine is None:
        return (
            f"the recording has attention with {theirs.n_head} heads, scale {_scale(theirs, ways)} and"
            f" {MASKS[theirs.mask]}; the port's variant is unknown"
        )
    differences = list(_differences(mine, theirs, ways))
    return f"attention with {' and '.join(differences)}" if differences else ""


def _assumed(module: Module, trial: Trial) -> AttentionCall | None:
    """Attention of the recorded outputs that look like queries, keys and values."""
    n, c = trial.recorded.shape
    same = [source.values for source in trial.sources if source.values.shape == (n, c) and source.name != ITS_INPUT]
    wide = [source.values for source in trial.sources if source.values.shape == (n, 3 * c)]
    if wide:
        q, k, v = np.split(wide[-1].astype(np.float64), 3, axis=-1)
    elif len(same) >= 3:
        q, k, v = (values.astype(np.float64) for values in same[-3:])
    else:
        return None
    declared = getattr(module, "n_head", None)
    n_head = declared if isinstance(declared, int) and declared > 0 and c % declared == 0 else 1
    layer = number if isinstance(number := getattr(module, "layer", None), int) else 0
    return AttentionCall(q, k, v, layer, n_head, 1 / math.sqrt(c // n_head))


@dataclass(frozen=True)
class _Ways:
    """The ways that are tried for one call."""

    call: AttentionCall
    recorded_angles: tuple[Floats, ...] = ()

    @cached_property
    def n_rows(self) -> int:
        """The rows that are computed: causal attention of the first rows does not depend on the others."""
        most = MAX_SCORES if self.call.window is None else MAX_WINDOW_SCORES
        return min(len(self.call.q), math.isqrt(most // self.call.n_head))

    @property
    def head_dim(self) -> int:
        return int(self.call.q.shape[1] // self.call.n_head)

    @cached_property
    def keys_and_values(self) -> tuple[Floats, Floats, str]:
        """Keys and values without the copies of a port that expands them to every query head, and the key of GROUPS."""
        k, v, n_head = self.call.k, self.call.v, self.call.n_head
        k_heads, v_heads = (x.reshape(len(x), -1, self.head_dim) for x in (k, v))
        if k_heads.shape != v_heads.shape or k_heads.shape[1] != n_head:
            return k, v, "repeated"
        for n in (n for n in range(1, n_head) if n_head % n == 0):
            for groups in GROUPS:
                first = np.arange(n) if groups == "tiled" else np.arange(n) * (n_head // n)
                copies = first[_key_heads(n_head, n, groups)]
                if all(np.array_equal(x, x[:, copies]) for x in (k_heads, v_heads)):
                    return k_heads[:, first].reshape(len(k), -1), v_heads[:, first].reshape(len(v), -1), groups
        return k, v, "repeated"

    @cached_property
    def angles(self) -> dict[str, Floats]:
        """The angles that are tried, by name."""
        rotation = self.call.q_rotation or self.call.k_rotation
        n, named = self.n_rows, {}
        if rotation is not None:
            named[OWN] = rotation.angles[:n]
        for i, angles in enumerate(self.recorded_angles):
            if angles.shape[-1] <= self.head_dim:
                named[f"{RECORDED} ({i + 1})" if i else RECORDED] = angles[:n]
        for theta in THETAS:
            for fraction in FRACTIONS:
                r = int(self.head_dim * fraction) // 2 * 2
                for factor in FACTORS if r else ():
                    divided = f", divided by {factor}" if factor > 1 else ""
                    name = f"theta {theta:.7g} over {r} of {self.head_dim} channels{divided}"
                    named[name] = angles_of(n, theta, r, factor)
        return named

    @cached_property
    def base(self) -> _Way:
        """The port's own way, as its call states it."""
        call = self.call
        rotated = ("q" if call.q_rotation else "") + ("k" if call.k_rotation else "")
        rotation = call.q_rotation or call.k_rotation
        interleaved = rotation is not None and rotation.interleaved
        return _Way(
            call.n_head,
            call.scale,
            window=call.window,
            groups=self.keys_and_values[2],
            softcap=call.softcap,
            slopes=call.slopes is not None,
            rotated=rotated,
            interleaved=interleaved,
        )

    def all(self) -> Iterator[_Way]:
        """The port's own way, and those that differ in one respect, the most likely first."""
        call, base = self.call, self.base
        same_width = self.keys_and_values[0].shape == call.q.shape
        yield base
        yield from (base._replace(scale=scale) for scale in self._scales(base.n_head))
        if self.n_rows == len(call.q):
            yield from (base._replace(mask=mask) for mask in MASKS)
        yield from (base._replace(window=window) for window in self._windows())
        if same_width:
            yield from (base._replace(order=order) for order in permutations(Q_K_V))
            if not base.rotated:
                yield base._replace(fused="heads")
        yield from (base._replace(groups=groups) for groups in GROUPS)
        yield from (base._replace(softcap=softcap) for softcap in (None, *SOFTCAPS))
        yield base._replace(slopes=not base.slopes)
        yield from self._rotations()
        if same_width and not base.rotated:
            for n_head in self._heads():
                yield from (base._replace(n_head=n_head, scale=scale) for scale in (base.scale, *self._scales(n_head)))

    def with_fitted_scale(self, trial: Trial, target: NDArray[Any]) -> _Way | None:
        """The port's own way with the scale that fits best; None if it does not fit."""

        def error(scale: float) -> float:
            return distance(self.computed(self.base._replace(scale=scale)), target).absolute

        best, step = 1.0, 10.0 ** (1 / 16)
        powers = [step**k for k in range(-48, 9)]
        for _ in range(6):  # ever finer
            best = min((best * power for power in powers), key=error)
            step **= 1 / 8
            powers = [step**k for k in range(-9, 10)]
        way = self.base._replace(scale=best)
        return way if trial.fits(self.computed(way), target) else None

    def _scales(self, n_head: int) -> list[float]:
        width, layer = self.call.q.shape[1], self.call.layer
        usual = 1 / math.sqrt(width // n_head)
        return [usual, usual / (layer + 1), 1.0, 1.0 / (layer + 1), usual * usual, 1 / math.sqrt(width)]

    def _heads(self) -> list[int]:
        width = self.call.q.shape[1]
        return [n for n in range(1, min(width, 64) + 1) if width % n == 0 and self.n_rows**2 * n <= MAX_SCORES]

    def _windows(self) -> list[int | None]:
        n, window = self.n_rows, self.call.window
        if window is None:
            return [*range(1, n)] if n <= 64 else [2**k + d for k in range(3, 13) for d in (0, -1, 1) if 2**k + d < n]
        near = [window - 1, window + 1, None, 2 * window, window // 2]
        return [each for each in near if each is None or each > 0]

    def _rotations(self) -> Iterator[_Way]:
        base = self.base
        if base.rotated:
            yield base._replace(interleaved=not base.interleaved)
            yield from (base._replace(rotated=rotated) for rotated in ("qk", "q", "k", ""))
            yield from (base._replace(angles=name) for name in self.angles)
        else:
            for name in self.angles:
                for interleaved in (False, True):
                    yield base._replace(rotated="qk", angles=name, interleaved=interleaved)

    def computed(self, way: _Way) -> Floats:
        """(n_rows, H·D): attention by the textbook formula."""
        n, call = self.n_rows, self.call
        arrays = [np.asarray(x[:n], np.float64) for x in (call.q, *self.keys_and_values[:2])]
        if way.fused == "heads":
            fused = np.concatenate(arrays, axis=1).reshape(n, way.n_head, 3, -1)
            arrays = [fused[:, :, i].reshape(n, -1) for i in range(3)]
        arrays = [arrays[i] for i in way.order]
        dim = arrays[0].shape[1] // way.n_head
        for which, name in enumerate("qk"):
            if name in way.rotated:
                arrays[which] = turned(arrays[which], self.angles[way.angles], dim, interleaved=way.interleaved)
        q, k, v = (x.reshape(n, -1, dim).swapaxes(0, 1) for x in arrays)
        reads = _key_heads(way.n_head, len(k), way.groups)
        scores = q @ k[reads].swapaxes(1, 2) * way.scale
        if way.softcap is not None:
            scores = way.softcap * np.tanh(scores / way.softcap)
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        if way.slopes:
            has_own = call.slopes is not None and len(call.slopes) == way.n_head
            slopes = call.slopes if has_own else _alibi(way.n_head)
            scores = scores + np.asarray(slopes, np.float64)[:, None, None] * (j - i)
        scores = np.where(_visible(way, i, j), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads = weights / weights.sum(axis=-1, keepdims=True) @ v[reads]
        result: Floats = heads.swapaxes(0, 1).reshape(n, -1)
        return result


def _key_heads(n_head: int, n_kv_head: int, groups: str) -> Floats:
    """The key head of each query head."""
    heads = np.arange(n_head)
    return heads % n_kv_head if groups == "tiled" else heads * n_kv_head // n_head


def _visible(way: _Way, i: Floats, j: Floats) -> Floats:
    visible = {"causal": j <= i, "no": j >= 0 * i, "next": j <= i + 1, "strict": (j < i) | (i == 0) & (j == 0)}[
        way.mask
    ]
    return visible if way.window is None else visible & (j > i - way.window)


def _alibi(n_head: int) -> Floats:
    """The slopes of Press et al. for n_head heads."""
    whole = 2 ** math.floor(math.log2(n_head))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return np.array(slopes + [2 ** (-8 * (2 * i + 1) / (2 * whole)) for i in range(n_head - whole)])


def _differences(mine: _Way, theirs: _Way, ways: _Ways) -> Iterator[str]:
    """What differs between the two ways: the port's, where the recording has another."""
    where = "where the recording has"
    if mine.n_head != theirs.n_head:
        yield f"{mine.n_head} heads {where} {theirs.n_head}"
    if mine.scale != theirs.scale:
        yield f"{_scale(mine, ways)} {where} {_scale(theirs, ways)}"
    if mine.mask != theirs.mask:
        yield f"{MASKS[mine.mask]} {where} {MASKS[theirs.mask]}"
    if mine.window != theirs.window:
        yield f"{_setting(mine.window, 'window')} {where} {_setting(theirs.window, 'window')}"
    if mine.order != theirs.order:
        names = ", ".join("qkv"[theirs.order.index(i)] for i in mine.order)
        yield "q and k swapped" if names == "k, q, v" else f"{names} for q, k, v"
    if mine.groups != theirs.groups:
        yield f"{GROUPS[mine.groups]} {where} {GROUPS[theirs.groups]}"
    if mine.fused != theirs.fused:
        yield f"{FUSED[mine.fused]} {where} {FUSED[theirs.fused]}"
    if mine.softcap != theirs.softcap:
        yield f"{_setting(mine.softcap, 'softcap')} {where} {_setting(theirs.softcap, 'softcap')}"
    if mine.slopes != theirs.slopes:
        yield f"{_slopes(mine)} {where} {_slopes(theirs)}"
    if mine.rotated != theirs.rotated:
        yield f"{_rotated(mine)} {where} {_rotated(theirs)}"
    elif mine.interleaved != theirs.interleaved:
        yield f"rotary {PAIRINGS[mine.interleaved]} {where} {PAIRINGS[theirs.interleaved]}"
    elif mine.angles != theirs.angles:
        yield f"rotary embedding by other angles {where} {theirs.angles}"


def _scale(way: _Way, ways: _Ways) -> str:
    """The scale in words."""
    if way.scale == 1:
        return "no scale"
    is_usual = math.isclose(way.scale, 1 / math.sqrt(ways.call.q.shape[1] // way.n_head))
    return "1/√head_dim" if is_usual else f"a scale of {way.scale:.4g}"


def _setting(value: float | None, noun: str) -> str:
    return f"no {noun}" if value is None else f"a {noun} of {value:g}"


def _slopes(way: _Way) -> str:
    return "ALiBi slopes" if way.slopes else "no ALiBi slopes"


def _rotated(way: _Way) -> str:
    if not way.rotated:
        return "no rotary embedding"
    angles = "" if way.angles in {OWN, RECORDED} else f" with {way.angles}"
    pairs = f", {PAIRINGS[True]}" if way.interleaved else ""
    return f"rotary embedding of {' and '.join(way.rotated)}{'' if way.rotated == 'qk' else ' only'}{angles}{pairs}"
