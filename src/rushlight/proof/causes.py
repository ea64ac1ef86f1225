"""Why a module diverges, found by trying: which formula makes the recorded array, and which one makes the port's?

Everything is tried on recorded inputs, so that a cause speaks of this module alone. A cause is only said if trying it
gives the recorded numbers; where nothing does, there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rushlight.backends.reference import ACTIVATION_FUNCTIONS
from rushlight.nn import Activation, Conv1D, Convolution, Embedding, LayerNorm, Linear
from rushlight.proof.compare import distance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["ITS_INPUT", "Source", "Trial", "why_input", "why_output"]

ITS_INPUT = "its input"
"""The name of what the module itself was called with."""

Floats = Any  # NDArray of float64

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-3, 1e-2)
MAX_PROBE = 2**26
"""Elements of the largest weight that is read back through the module that holds it."""
FAR = 1e4
MAX_SUM = 6
MAX_SCORES = 2**22
"""T·T·H of the longest attention that is tried."""


class Source(NamedTuple):
    """A recorded array that a formula may begin with, and what to call it."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class Trial:
    """A place where the port and the recording part.

    Attributes:
        found, recorded: what the port has there, and what was recorded; of one shape.
        sources: what was recorded before, of the same module: its input and what the modules inside returned.
        elsewhere: arrays of the same shape that were recorded anywhere.
        tolerance: relative; what fits to twice that is taken for equal.
    """

    found: NDArray[Any]
    recorded: NDArray[Any]
    sources: Sequence[Source]
    elsewhere: Sequence[Source]
    tolerance: float

    def fits(self, candidate: Floats, target: Floats) -> bool:
        return candidate.shape == target.shape and distance(candidate, target).within(2 * self.tolerance)


def why_output(module: Module, given: NDArray[Any] | None, trial: Trial) -> str:
    """Why a module that was given the recorded input returns something else than was recorded; or an empty text."""
    if said := _not_finite(trial, "its weights hold"):
        return said
    tries: list[Any] = []
    if given is not None and isinstance(module, Embedding):
        tries = [_rows_shifted, _scaled, _rounded]
    elif given is not None and isinstance(module, Linear | Conv1D):
        tries = [_thirds, _constant, _transposed, _scaled, _rounded]
    elif given is not None and isinstance(module, LayerNorm):
        tries = [_epsilon, _constant, _gain, _rms, _rounded]
    elif given is not None and isinstance(module, Convolution):
        tries = [_constant, _window, _scaled]
    elif given is not None and isinstance(module, Activation):
        trial = replace(trial, sources=[Source(ITS_INPUT, given)])
    for attempt in (*(tries or [_formulas]), _exchanged):
        if said := attempt(module, given, trial):
            return str(said)
    return _where(trial)


def why_input(parent: Module, trial: Trial) -> str:
    """Why a module hands one inside it something else than was recorded; or an empty text."""
    if trial.found.dtype.kind in "iu":
        steps = np.unique(trial.found.astype(np.int64) - trial.recorded)
        return f"off by {_signed(int(steps[0]))} everywhere: positions or ids shifted" if len(steps) == 1 else ""
    return (
        _not_finite(trial, "it computes")
        or _formulas(parent, None, trial)
        or _exchanged(parent, None, trial)
        or _where(trial)
    )


def _not_finite(trial: Trial, whose: str) -> str:
    bad = ~np.isfinite(trial.found) & np.isfinite(trial.recorded)
    if not bad.any():
        return ""
    rows, channels = np.unique(np.argwhere(bad.reshape(len(bad), -1))[:, 0]), np.flatnonzero(bad.any(axis=0))
    if bad.all():
        where = "everywhere"
    elif len(rows) == len(bad):
        where = f"in channel {_few(channels)} of {bad.shape[-1]}"
    else:
        where = f"in row {_few(rows)} of {len(bad)}"
    what = "NaN" if np.isnan(trial.found[bad]).any() else "infinity"
    return f"{whose} {what}: {int(bad.sum()):,} values are not finite, {where}, and none was recorded so"


def _exchanged(_module: Module, _given: object, trial: Trial) -> str:
    """Whether the port has here what was recorded somewhere else."""
    mine = next((source.name for source in trial.elsewhere if trial.fits(source.values, trial.found)), None)
    if mine is None:
        return ""
    theirs = next((source.name for source in trial.elsewhere if trial.fits(source.values, trial.recorded)), None)
    return f"it has {mine} here" + (f", where the recording has {theirs}" if theirs else "")


def _rows_shifted(module: Embedding, ids: NDArray[Any], trial: Trial) -> str:
    for step in (-1, 1, -2, 2):
        rows = ids + step
        inside = (rows >= 0) & (rows < module.n_rows)
        if inside.any():
            other = module.ops.to_numpy(module(np.clip(rows, 0, module.n_rows - 1).astype(np.int32)))
            if trial.fits(np.asarray(other)[inside], trial.recorded[inside]):
                return f"its rows are shifted: row i + {step} is the recorded row i".replace("+ -", "- ") + (
                    "; positions off by one" if abs(step) == 1 else ""
                )
    return ""


def _thirds(_module: Module, _given: object, trial: Trial) -> str:
    """Whether the parts of the output, queries, keys and values for one, are in another order."""
    for n, names in ((3, ("q", "k", "v")), (2, ("the first half", "the second half"))):
        if trial.found.shape[-1] % n:
            continue
        parts = np.split(trial.found, n, axis=-1)
        for order in permutations(range(n)):
            if list(order) != sorted(order) and trial.fits(
                np.concatenate([parts[i] for i in order], axis=-1), trial.recorded
            ):
                if n == 2:
                    return "the halves of its output are exchanged"
                moved = [name for i, name in zip(order, names, strict=True) if names[i] != name]
                if len(moved) == 2:
                    return f"{moved[0]} and {moved[1]} are exchanged: two of the thirds of its output"
                return "the thirds of its output, q, k and v, are in another order"
    return ""


def _constant(module: Module, given: NDArray[Any], trial: Trial) -> str:
    """Whether the difference is the same in every row, as that of a bias is."""
    difference = trial.recorded.astype(np.float64) - trial.found
    if len(difference) < 2 or not trial.fits(trial.found + difference.mean(axis=0), trial.recorded):
        return ""
    n = int((np.abs(difference.mean(axis=0)) > trial.tolerance * np.abs(trial.recorded).max()).sum())
    bias = _at_zero(module, given)
    if bias is not None and not bias.any():
        return f"the bias is missing: the recording has one, at {n} of {difference.shape[-1]} channels not zero"
    return (
        f"the bias is another one: the difference is the same in every row, in {n} of {difference.shape[-1]} channels"
    )


def _at_zero(module: Module, given: NDArray[Any]) -> Floats | None:
    """The bias, as the module has it."""
    if isinstance(module, LayerNorm):
        return _call(module, given[:1]) + _call(module, -given[:1])
    if isinstance(module, Convolution):
        return None if module.bias is not None else np.zeros(1)
    return _call(module, np.zeros_like(given[:1]))


def _transposed(module: Linear | Conv1D, given: NDArray[Any], trial: Trial) -> str:
    if module.n_in != module.n_out:
        return ""
    weight, bias = _probed(module)
    without = given.astype(np.float64) @ weight.T
    if trial.fits(without + bias, trial.recorded):
        return "the weight is transposed"
    rest = trial.recorded - without
    if len(rest) > 1 and trial.fits(without + rest.mean(axis=0), trial.recorded):
        return "the weight is transposed, and the bias is another one"
    return ""


def _probed(module: Linear | Conv1D) -> tuple[Floats, Floats]:
    """(n_in, n_out) weight and (n_out,) bias, as the module computes with them: what it makes of unit vectors."""
    bias = _call(module, np.zeros((1, module.n_in)))[0]
    return _call(module, np.eye(module.n_in)) - bias, bias


def _scaled(_module: Module, _given: object, trial: Trial) -> str:
    found, recorded = trial.found.astype(np.float64), trial.recorded.astype(np.float64)
    power = float((found * found).sum())
    factor = float((found * recorded).sum()) / power if power else 0.0
    return f"the recording is {factor:.6g} times what it computes" if trial.fits(factor * found, recorded) else ""


def _rounded(module: Module, given: NDArray[Any], trial: Trial) -> str:
    """Whether the weights are numbers of 16 bits, and the recorded ones were not."""
    if isinstance(module, Embedding):
        weight = np.asarray(trial.found, np.float64)
        slack = 0.0
    elif isinstance(module, LayerNorm):
        weight, slack = np.concatenate(_gain_and_bias(module, given)), 2e-6
    elif isinstance(module, Linear | Conv1D) and module.n_in * module.n_out <= MAX_PROBE:
        weight, bias = _probed(module)
        slack = 4e-7 * (1 + float(np.abs(bias).max()) / max(float(np.abs(weight).max()), 1e-30))
    else:
        return ""
    for name, bits, size in (("bfloat16", 2**-8, 2e-2), ("float16", 2**-11, 2e-3)):
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(weight), 1e-30)))) * bits * 2
        off = np.abs(weight - np.round(weight / step) * step)
        if (off <= slack * np.abs(weight).max()).all() and distance(trial.found, trial.recorded).within(size):
            return f"its weights are {name} numbers, rounded, where the recorded ones were not"
    return ""


def _normalised(x: Floats, eps: float) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)


def _gain_and_bias(module: LayerNorm, given: NDArray[Any]) -> tuple[Floats, Floats]:
    """The gain and the bias, from what the module makes of a row and of its negative."""
    row = given[:1].astype(np.float64)
    row = row * (FAR / max(float(np.abs(row).max()), 1e-30))  # so large that no eps shows
    plus, minus = _call(module, row), _call(module, -row)
    normal = _normalised(row, 0.0)
    return np.where(normal == 0, 1.0, (plus - minus) / 2 / np.where(normal == 0, 1.0, normal)), (plus + minus) / 2


def _epsilon(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether two values of eps make the recorded output and the port's."""
    x = given.astype(np.float64)
    gain, bias = _gain_and_bias(module, given)

    def fitted(target: NDArray[Any]) -> float | None:
        def error(eps: float) -> float:
            return distance(_normalised(x, eps) * gain + bias, target).relative

        # The usual values first; else the least error over powers of ten, closer and closer.
        eps = min((module.eps, *EPSILONS), key=error)
        if not error(eps) <= 2 * trial.tolerance:
            eps = min((10.0 ** (k / 20) for k in range(-280, 41)), key=error)
            eps = min((eps * 10.0 ** (k / 400) for k in range(-20, 21)), key=error)
            eps = min((eps * 10.0 ** (k / 8000) for k in range(-20, 21)), key=error)
        return eps if error(eps) <= 2 * trial.tolerance else None

    mine, theirs = fitted(trial.found), fitted(trial.recorded)
    if mine is None or theirs is None or math.isclose(mine, theirs, rel_tol=1e-3):
        return ""
    return f"eps is {mine:.3g}, and the recording fits {theirs:.3g}"


def _gain(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether another gain, and no other bias, makes the recorded output."""
    normal = _normalised(given.astype(np.float64), module.eps)
    bias = _gain_and_bias(module, given)[1]
    power = np.square(normal).sum(axis=0)
    gain = (normal * (trial.recorded - bias)).sum(axis=0) / np.where(power == 0, 1.0, power)
    return "its weight is another one: the bias is right" if trial.fits(normal * gain + bias, trial.recorded) else ""


def _rms(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    x = given.astype(np.float64)
    gain, bias = _gain_and_bias(module, given)
    rms = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + module.eps)
    return (
        "the recording does not subtract the mean: an RMS norm" if trial.fits(rms * gain + bias, trial.recorded) else ""
    )


def _window(_module: Convolution, _given: object, trial: Trial) -> str:
    """Whether the rows are those of a window that begins earlier or later; the ends, where zeros stand, aside."""
    n = len(trial.found)
    for step in range(1, min(8, n // 2)):
        for found, recorded, way in (
            (trial.found[step:], trial.recorded[:-step], "earlier"),
            (trial.found[:-step], trial.recorded[step:], "later"),
        ):
            inner = slice(step, -step) if len(found) > 2 * step + 2 else slice(None)
            if trial.fits(found[inner], recorded[inner]):
                return (
                    f"its window begins {step} row{'s' if step > 1 else ''} {way} than the recorded one: see `before`"
                )
    return ""


def _formulas(module: Module, _given: object, trial: Trial) -> str:
    """The formulas that make the two sides, if both are found, or what is known of one."""
    if said := _attention(module, trial):
        return said
    theirs, mine = _formula(trial, trial.recorded), _formula(trial, trial.found)
    suffix = f" of {ITS_INPUT}"
    if isinstance(module, Activation) and theirs.endswith(suffix) and mine.endswith(suffix):
        theirs, mine = theirs.removesuffix(suffix), mine.removesuffix(suffix)
    if theirs and mine and theirs != mine:
        return f"it computes {mine} where the recording has {theirs}"
    if theirs and not mine:
        return f"the recording has {theirs}"
    return _scaled(module, None, trial)


def _formula(trial: Trial, target: NDArray[Any]) -> str:
    for name, values in _candidates(trial.sources, target.shape):
        if trial.fits(values, target):
            return name
    if said := _sum(trial, target):
        return said
    # A branch that is added to the stream.
    stream = next((s.values for s in trial.sources if s.name == ITS_INPUT and s.values.shape == target.shape), None)
    for name, values in _candidates(trial.sources, target.shape) if stream is not None else ():
        if trial.fits(values + stream, target):
            return f"{ITS_INPUT} + {name}"
    return ""


def _candidates(sources: Sequence[Source], shape: tuple[int, ...]) -> Iterator[Source]:
    """What a line of code between modules may compute of one or two arrays."""
    sources = [Source(name, np.asarray(values, np.float64)) for name, values in sources if values.dtype.kind == "f"]
    for name, values in sources:
        if values.shape == shape:
            yield Source(name, values)
            for function, apply in ACTIVATION_FUNCTIONS.items():
                yield Source(f"{function} of {name}", apply(values))
    halves = [
        (f"the {which} half of {name}", half)
        for name, values in sources
        if values.ndim == len(shape) and values.shape[-1] == 2 * shape[-1] and values.shape[:-1] == shape[:-1]
        for which, half in zip(("first", "second"), np.split(values, 2, axis=-1), strict=True)
    ]
    factors = halves + [(name, values) for name, values in sources if values.shape == shape]
    for one, a in factors[-8:]:
        for other, b in factors[-8:]:
            if one != other:
                yield Source(f"{one} times {other}", a * b)
                for function, apply in ACTIVATION_FUNCTIONS.items():
                    yield Source(f"{one} times {function} of {other}", a * apply(b))


def _sum(trial: Trial, target: NDArray[Any]) -> str:
    """The target as a sum of sources, each times a number; empty if it is none."""
    terms = [source for source in trial.sources if source.values.shape == target.shape][-MAX_SUM:]
    if not terms:
        return ""
    columns = np.stack([np.asarray(term.values, np.float64).reshape(-1) for term in terms], axis=1)
    if not np.isfinite(target).all() or not np.isfinite(columns).all():
        return ""
    factors = np.linalg.lstsq(columns, target.astype(np.float64).reshape(-1), rcond=None)[0]
    factors = np.where(np.abs(factors - np.round(factors)) < 1e-3, np.round(factors), factors)
    if not trial.fits((columns @ factors).reshape(target.shape), target):
        return ""
    parts = [
        term.name if factor == 1 else f"{factor:.4g} × {term.name}"
        for factor, term in zip(factors, terms, strict=True)
        if factor != 0
    ]
    return " + ".join(parts) or "zeros"


class _Attention(NamedTuple):
    """One way to compute attention from the same queries, keys and values."""

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


def _attention(module: Module, trial: Trial) -> str:
    """Whether both sides are attention, and in what they differ.

    Queries, keys and values are the thirds of a recorded output, or three outputs of the same shape.
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
    told = getattr(module, "n_head", None)
    heads = [h for h in range(1, min(c, 64) + 1) if c % h == 0 and n * n * h <= MAX_SCORES]
    heads.sort(key=lambda h: h != told)
    layer = getattr(module, "layer", 0)

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
            f"the recording has attention of {theirs.n_head} heads, scale {root} and {theirs.mask} mask; what the port"
            " computes was not found"
        )
    said = []
    if mine.n_head != theirs.n_head:
        said.append(f"{mine.n_head} heads where the recording has {theirs.n_head}")
    if mine.scale != theirs.scale:
        scale = "no scale" if mine.scale == 1 else f"a scale of {mine.scale:.4g}"
        said.append(f"{scale} where the recording has {root}")
    if mine.mask != theirs.mask:
        mask = {"causal": "a causal mask", "no": "no mask"}
        said.append(f"{mask.get(mine.mask, mine.mask)} where the recording has {mask[theirs.mask]}")
    if mine.order != theirs.order:
        names = ", ".join("qkv"[i] for i in mine.order)
        exchanged = mine.order == (1, 0, 2)
        said.append("q and k exchanged" if exchanged else f"{names} for q, k, v")
    return f"attention with {' and '.join(said)}"


def _attend(parts: Sequence[Floats], way: _Attention) -> Floats:
    """Attention by the textbook formula, (T, C)."""
    n, c = parts[0].shape
    q, k, v = (parts[i].reshape(n, way.n_head, -1).swapaxes(0, 1) for i in way.order)
    scores = np.where(_visible(way.mask, n), q @ k.swapaxes(1, 2) * way.scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    heads = weights / weights.sum(axis=-1, keepdims=True) @ v
    result: Floats = heads.swapaxes(0, 1).reshape(n, c)
    return result


def _where(trial: Trial) -> str:
    """In which rows or channels the difference is, where it is not everywhere."""
    off = np.abs(trial.found.astype(np.float64) - trial.recorded) > trial.tolerance * np.abs(trial.recorded).max()
    if off.ndim != 2 or not off.any():
        return ""
    rows, channels = np.flatnonzero(off.any(axis=1)), np.flatnonzero(off.any(axis=0))
    if 2 * len(channels) < off.shape[1]:
        return f"the difference is in channel {_few(channels)} of {off.shape[1]} alone"
    if 2 * len(rows) < len(off):
        return f"the difference is in row {_few(rows)} of {len(off)} alone"
    return ""


def _few(numbers: NDArray[Any]) -> str:
    shown = ", ".join(str(int(i)) for i in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, … ({len(numbers)})"


def _signed(n: int) -> str:
    return f"+{n}" if n > 0 else str(n)


def _call(module: Module, x: Floats) -> Floats:
    """What a module without a batch makes of (N, C) values."""
    given = module.ops.from_numpy(np.ascontiguousarray(x, np.float32))
    called: Any = module
    return np.array(module.ops.to_numpy(called(given)), np.float64)
