"""Finds why a layer diverges: its weight, bias, rows or window.

Each function takes the module, its recorded input and the trial, and returns a cause or an empty string.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.nn import Conv1D, Convolution, Embedding, LayerNorm, Linear, RMSNorm
from rushlight.proof.compare import distance
from rushlight.proof.diagnosis.norms import called, gain_and_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.nn import Module
    from rushlight.proof.diagnosis.trial import Floats, Trial

__all__ = [
    "constant",
    "rounded",
    "rows_shifted",
    "scaled",
    "thirds",
    "transposed",
    "window",
]

MAX_PROBE = 2**26
"""The largest number of elements of a weight that is read back through its module."""


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
        return called(module, given[:1]) + called(module, -given[:1])
    if isinstance(module, Convolution):
        return None if module.bias is not None else np.zeros(1)
    return called(module, np.zeros_like(given[:1]))


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
    bias = called(module, np.zeros((1, module.n_in)))[0]
    return called(module, np.eye(module.n_in)) - bias, bias


def scaled(module: Module, _given: object, trial: Trial) -> str:
    """Whether the recorded output is a multiple of the port's."""
    found, recorded = trial.found.astype(np.float64), trial.recorded.astype(np.float64)
    power = float((found * found).sum())
    factor = float((found * recorded).sum()) / power if power else 0.0
    if not trial.fits(factor * found, recorded):
        return ""
    scale = f": its scale is {module.scale:g}, not {factor * module.scale:.6g}" if isinstance(module, Embedding) else ""
    return f"the recording is {factor:.6g} times what it computes{scale}"


def rounded(module: Module, given: NDArray[Any], trial: Trial) -> str:
    """Whether the weights are rounded to 16 bits, unlike the recorded ones."""
    if isinstance(module, Embedding):
        weight = np.asarray(trial.found, np.float64)
        slack = 0.0
    elif isinstance(module, LayerNorm | RMSNorm):
        weight, slack = np.concatenate(gain_and_bias(module, given)), 2e-6
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
