"""Finds why a layer diverges: its weight, bias, eps, rows or window.

Each function takes the module, its recorded input and the trial, and returns a cause or an empty string.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.nn import Conv1D, Convolution, Embedding, LayerNorm, Linear
from rushlight.proof.compare import distance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.nn import Module
    from rushlight.proof.diagnosis.trial import Floats, Trial

__all__ = [
    "constant",
    "epsilon",
    "gain_differs",
    "rms",
    "rounded",
    "rows_shifted",
    "scaled",
    "thirds",
    "transposed",
    "window",
]

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-3, 1e-2)
MAX_PROBE = 2**26
"""The largest number of elements of a weight that is read back through its module."""
FAR = 1e4
"""Rows are scaled to this size, so that eps has no effect."""


def rows_shifted(module: Embedding, ids: NDArray[Any], trial: Trial) -> str:
    """Whether the recorded rows are neighbours of the ones that the port looked up."""
    for step in (-1, 1, -2, 2):
        rows = ids + step
        inside = (rows >= 0) & (rows < module.n_ids)
        if inside.any():
            other = module.ops.to_numpy(module(np.clip(rows, 0, module.n_ids - 1).astype(np.int32)))
            if trial.fits(np.asarray(other)[inside], trial.recorded[inside]):
                return f"its rows are shifted: row i + {step} is the recorded row i".replace("+ -", "- ") + (
                    "; positions off by one" if abs(step) == 1 else ""
                )
    return ""


def thirds(_module: Module, _given: object, trial: Trial) -> str:
    """Whether parts of the output, such as queries, keys and values, are in another order."""
    for n, names in ((3, ("q", "k", "v")), (2, ("the first half", "the second half"))):
        if trial.found.shape[-1] % n:
            continue
        parts = np.split(trial.found, n, axis=-1)
        for order in permutations(range(n)):
            if list(order) != sorted(order) and trial.fits(
                np.concatenate([parts[i] for i in order], axis=-1), trial.recorded
            ):
                if n == 2:
                    return "the halves of its output are swapped"
                moved = [name for i, name in zip(order, names, strict=True) if names[i] != name]
                if len(moved) == 2:
                    return f"{moved[0]} and {moved[1]} are swapped (two of the thirds of its output)"
                return "the thirds of its output, q, k and v, are in another order"
    return ""


def constant(module: Module, given: NDArray[Any], trial: Trial) -> str:
    """Whether the difference is the same in every row, like that of a bias."""
    difference = trial.recorded.astype(np.float64) - trial.found
    if len(difference) < 2 or not trial.fits(trial.found + difference.mean(axis=0), trial.recorded):
        return ""
    n = int((np.abs(difference.mean(axis=0)) > trial.tolerance * np.abs(trial.recorded).max()).sum())
    bias = _at_zero(module, given)
    if bias is not None and not bias.any():
        return f"the bias is missing: the recording has one, non-zero in {n} of {difference.shape[-1]} channels"
    return f"the bias differs: every row differs by the same values, in {n} of {difference.shape[-1]} channels"


def _at_zero(module: Module, given: NDArray[Any]) -> Floats | None:
    """The module's bias."""
    if isinstance(module, LayerNorm):
        return _call(module, given[:1]) + _call(module, -given[:1])
    if isinstance(module, Convolution):
        return None if module.bias is not None else np.zeros(1)
    return _call(module, np.zeros_like(given[:1]))


def transposed(module: Linear | Conv1D, given: NDArray[Any], trial: Trial) -> str:
    """Whether the transpose of a square weight gives the recorded output, up to the bias."""
    if module.n_in != module.n_out:
        return ""
    weight, bias = _probed(module)
    without = given.astype(np.float64) @ weight.T
    if trial.fits(without + bias, trial.recorded):
        return "the weight is transposed"
    rest = trial.recorded - without
    if len(rest) > 1 and trial.fits(without + rest.mean(axis=0), trial.recorded):
        return "the weight is transposed, and the bias differs"
    return ""


def _probed(module: Linear | Conv1D) -> tuple[Floats, Floats]:
    """The (n_in, n_out) weight and (n_out,) bias that the module computes with: its outputs for unit vectors."""
    bias = _call(module, np.zeros((1, module.n_in)))[0]
    return _call(module, np.eye(module.n_in)) - bias, bias


def scaled(_module: Module, _given: object, trial: Trial) -> str:
    """Whether the recorded output is a multiple of the port's."""
    found, recorded = trial.found.astype(np.float64), trial.recorded.astype(np.float64)
    power = float((found * found).sum())
    factor = float((found * recorded).sum()) / power if power else 0.0
    return f"the recording is {factor:.6g} times what it computes" if trial.fits(factor * found, recorded) else ""


def rounded(module: Module, given: NDArray[Any], trial: Trial) -> str:
    """Whether the weights are rounded to 16 bits, unlike the recorded ones."""
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
            return f"its weights are rounded to {name}, unlike the recorded ones"
    return ""


def _normalised(x: Floats, eps: float) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)


def _gain_and_bias(module: LayerNorm, given: NDArray[Any]) -> tuple[Floats, Floats]:
    """The gain and the bias, from the module's outputs for a row and for its negative."""
    row = given[:1].astype(np.float64)
    row = row * (FAR / max(float(np.abs(row).max()), 1e-30))
    plus, minus = _call(module, row), _call(module, -row)
    normal = _normalised(row, 0.0)
    return np.where(normal == 0, 1.0, (plus - minus) / 2 / np.where(normal == 0, 1.0, normal)), (plus + minus) / 2


def epsilon(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether two values of eps give the recorded output and the port's."""
    x = given.astype(np.float64)
    gain, bias = _gain_and_bias(module, given)

    def fitted(target: NDArray[Any]) -> float | None:
        def error(eps: float) -> float:
            return distance(_normalised(x, eps) * gain + bias, target).relative

        # The usual values first; otherwise the least error over ever finer powers of ten.
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


def gain_differs(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether another gain with the same bias gives the recorded output."""
    normal = _normalised(given.astype(np.float64), module.eps)
    bias = _gain_and_bias(module, given)[1]
    power = np.square(normal).sum(axis=0)
    gain = (normal * (trial.recorded - bias)).sum(axis=0) / np.where(power == 0, 1.0, power)
    return "its weight differs; the bias is right" if trial.fits(normal * gain + bias, trial.recorded) else ""


def rms(module: LayerNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether the recorded norm does not subtract the mean."""
    x = given.astype(np.float64)
    gain, bias = _gain_and_bias(module, given)
    rms = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + module.eps)
    return (
        "the recording does not subtract the mean: an RMS norm" if trial.fits(rms * gain + bias, trial.recorded) else ""
    )


def window(_module: Convolution, _given: object, trial: Trial) -> str:
    """Whether the window begins earlier or later than the recorded one; rows at the zero-padded ends are ignored."""
    n = len(trial.found)
    for step in range(1, min(8, n // 2)):
        for found, recorded, way in (
            (trial.found[step:], trial.recorded[:-step], "earlier"),
            (trial.found[:-step], trial.recorded[step:], "later"),
        ):
            inner = slice(step, -step) if len(found) > 2 * step + 2 else slice(None)
            if trial.fits(found[inner], recorded[inner]):
                return (
                    f"its window begins {step} row{'s' if step > 1 else ''} {way} than the recorded one; check `before`"
                )
    return ""


def _call(module: Module, x: Floats) -> Floats:
    """The output of a module that takes no batch, for (N, C) values."""
    given = module.ops.from_numpy(np.ascontiguousarray(x, np.float32))
    called: Any = module
    return np.array(module.ops.to_numpy(called(given)), np.float64)
