"""Finds why a norm diverges: eps, the mean, 1 + weight, or the weight itself.

Each function takes the module, its recorded input and the trial, and returns a cause or an empty string.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.nn import LayerNorm, RMSNorm
from rushlight.proof.compare import distance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.nn import Module
    from rushlight.proof.diagnosis.trial import Floats, Trial

__all__ = ["called", "epsilon", "gain_and_bias", "gain_differs", "mean", "one_plus_weight"]

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-3, 1e-2)
FAR = 1e4
"""Rows are scaled to this size, so that eps has no effect."""


def epsilon(module: LayerNorm | RMSNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether two values of eps give the recorded output and the port's."""

    def fitted(target: NDArray[Any]) -> float | None:
        def error(eps: float) -> float:
            return distance(_output(module, given, eps=eps), target).relative

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


def one_plus_weight(module: RMSNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether the recorded norm multiplies by 1 + weight where the port does by weight, or the other way round."""
    for step, cause in (
        (1.0, "it multiplies by weight, and the recording by 1 + weight: offset=1.0 is missing"),
        (-1.0, "it multiplies by 1 + weight, and the recording by weight: offset is to be 0"),
    ):
        if trial.fits(_output(module, given, added=step), trial.recorded):
            return cause
    return ""


def mean(module: LayerNorm | RMSNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether only one of the two norms subtracts the mean."""
    is_rms = isinstance(module, RMSNorm)
    if not trial.fits(_output(module, given, centred=is_rms), trial.recorded):
        return ""
    if is_rms:
        return "the recording subtracts the mean: a LayerNorm with bias=False"
    return "the recording does not subtract the mean: an RMS norm"


def gain_differs(module: LayerNorm | RMSNorm, given: NDArray[Any], trial: Trial) -> str:
    """Whether another gain with the same bias gives the recorded output."""
    normal = _normalised(_groups(module, given), module.eps, centred=isinstance(module, LayerNorm))
    bias = gain_and_bias(module, given)[1]
    recorded = _groups(module, trial.recorded)
    power = np.square(normal).sum(axis=0)
    gain = (normal * (recorded - bias)).sum(axis=0) / np.where(power == 0, 1.0, power)
    what = "its weight differs; the bias is right" if isinstance(module, LayerNorm) else "its weight differs"
    return what if trial.fits(normal * gain + bias, recorded) else ""


def gain_and_bias(module: LayerNorm | RMSNorm, given: NDArray[Any]) -> tuple[Floats, Floats]:
    """The gain and the bias, from the module's outputs for a row and for its negative."""
    if isinstance(module, RMSNorm):
        row = np.full((1, given.shape[1]), FAR)
        return called(module, row)[:, : module.n_channels], np.zeros((1, module.n_channels))
    row = given[:1].astype(np.float64)
    row = row * (FAR / max(float(np.abs(row).max()), 1e-30))
    plus, minus = called(module, row), called(module, -row)
    normal = _normalised(row, 0.0, centred=True)
    return np.where(normal == 0, 1.0, (plus - minus) / 2 / np.where(normal == 0, 1.0, normal)), (plus + minus) / 2


def called(module: Module, x: Floats) -> Floats:
    """The output of a module that takes no batch, for (N, C) values."""
    given = module.ops.from_numpy(np.ascontiguousarray(x, np.float32))
    function: Any = module
    return np.array(module.ops.to_numpy(function(given)), np.float64)


def _output(
    module: LayerNorm | RMSNorm,
    given: NDArray[Any],
    *,
    eps: float | None = None,
    added: float = 0.0,
    centred: bool | None = None,
) -> Floats:
    """What the norm returns with another eps, with a number added to its gain, with or without subtracting the mean."""
    gain, bias = gain_and_bias(module, given)
    is_centred = isinstance(module, LayerNorm) if centred is None else centred
    normal = _normalised(_groups(module, given), module.eps if eps is None else eps, centred=is_centred)
    return (normal * (gain + added) + bias).reshape(given.shape)


def _groups(module: LayerNorm | RMSNorm, x: NDArray[Any]) -> Floats:
    """The groups of channels that are normalised: entire rows, or the heads of each row."""
    return x.astype(np.float64).reshape(-1, module.n_channels)


def _normalised(x: Floats, eps: float, *, centred: bool) -> Floats:
    centred_x = x - x.mean(axis=-1, keepdims=True) if centred else x
    return centred_x / np.sqrt(np.square(centred_x).mean(axis=-1, keepdims=True) + eps)
