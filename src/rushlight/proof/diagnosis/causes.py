"""Finds why a module diverges by trying causes: which formula gives the recorded array, and which the port's?

Causes are tried on recorded inputs, so that they concern only this module. A cause is reported only if it reproduces
the recorded values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.nn import Activation, Conv1D, Convolution, Embedding, LayerNorm, Linear, RMSNorm, Rotary
from rushlight.proof.diagnosis.formulas import formulas
from rushlight.proof.diagnosis.layers import (
    constant,
    rounded,
    rows_shifted,
    scaled,
    thirds,
    transposed,
    window,
)
from rushlight.proof.diagnosis.norms import epsilon, gain_differs, mean, one_plus_weight
from rushlight.proof.diagnosis.rotary import PAIRINGS, turned, why_angles
from rushlight.proof.diagnosis.trial import ITS_INPUT, Source, Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["why_input", "why_output"]


def why_output(module: Module, given: NDArray[Any] | None, trial: Trial) -> str:
    """Why a module returns another output for the recorded input; empty if no tried cause explains it."""
    if isinstance(module, Rotary):
        return why_angles(trial.found, trial.recorded)
    if cause := _not_finite(trial, "its weights hold"):
        return cause
    tries: list[Any] = []
    if given is not None and isinstance(module, Embedding):
        tries = [rows_shifted, scaled, rounded]
    elif given is not None and isinstance(module, Linear | Conv1D):
        tries = [thirds, constant, transposed, scaled, rounded]
    elif given is not None and isinstance(module, LayerNorm):
        tries = [epsilon, constant, gain_differs, mean, rounded]
    elif given is not None and isinstance(module, RMSNorm):
        tries = [epsilon, one_plus_weight, gain_differs, mean, rounded]
    elif given is not None and isinstance(module, Convolution):
        tries = [constant, window, scaled]
    elif given is not None and isinstance(module, Activation):
        trial = replace(trial, sources=[Source(ITS_INPUT, given)])
    for attempt in (*(tries or [_formulas]), _exchanged):
        if cause := attempt(module, given, trial):
            return str(cause)
    return _where(trial)


def _formulas(module: Module, _given: object, trial: Trial) -> str:
    return formulas(module, trial)[0]


def why_input(parent: Module, inner: Module, trial: Trial) -> str:
    """Why a module passes another input to a submodule, `inner`; empty if no tried cause explains it."""
    if trial.found.dtype.kind in "iu":
        steps = np.unique(trial.found.astype(np.int64) - trial.recorded)
        return f"off by {_signed(int(steps[0]))} everywhere: shifted positions or ids" if len(steps) == 1 else ""
    return (
        _not_finite(trial, "it computes")
        or _rotated(inner, trial)
        or _placed(parent, inner, trial)
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
    return f"{whose} {what}: {int(bad.sum()):,} values are not finite, {where}, unlike the recorded ones"


def _rotated(inner: Module, trial: Trial) -> str:
    """Whether rotary embedding comes before a norm of every head, and after it in the recording, or the reverse."""
    if not isinstance(inner, LayerNorm | RMSNorm):
        return ""
    for _, rotation in trial.noted.rotations:
        if trial.fits(rotation.turned, trial.found) and trial.fits(rotation.given, trial.recorded):
            return "rotary embedding comes before the norm, and after it in the recording"
    head_dim = inner.n_channels if trial.found.shape[-1] % inner.n_channels == 0 else trial.found.shape[-1]
    for angles in trial.angles:
        for interleaved in PAIRINGS:
            rotated = turned(trial.found, angles, head_dim, interleaved=interleaved)
            if angles.shape[-1] <= head_dim and trial.fits(rotated, trial.recorded):
                return "rotary embedding comes after the norm, and before it in the recording"
    return ""


def _placed(parent: Module, inner: Module, trial: Trial) -> str:
    """The formulas of the two inputs, with what they mean for a norm or for the activation of a gated MLP."""
    cause, mine, theirs = formulas(parent, trial)
    if not mine or not theirs or mine == theirs:
        return cause
    meaning = ""
    if isinstance(inner, Activation) and "+" not in mine + theirs:
        meaning = "gate and up are exchanged"
    elif isinstance(inner, LayerNorm | RMSNorm):
        meaning = _norm_is_elsewhere(mine, theirs)
    elif ITS_INPUT in {mine, theirs}:
        norms = {name for name, child in parent.children() if isinstance(child, LayerNorm | RMSNorm)}
        if theirs in norms:
            meaning = "that norm comes first in the recording"
        elif mine in norms:
            meaning = "that norm does not come first in the recording"
    return f"{cause}: {meaning}" if meaning else cause


def _norm_is_elsewhere(mine: str, theirs: str) -> str:
    """What the formulas of a norm's input mean for its place in a block; empty if they show none."""
    stream = f"{ITS_INPUT} + "
    meanings = (
        (theirs == stream + mine, "the residual is added before the norm in the recording"),
        (mine == stream + theirs, "the norm comes after the residual sum, and before it in the recording"),
        (mine == ITS_INPUT and theirs.startswith(stream), "the block is parallel, and serial in the recording"),
        (theirs == ITS_INPUT and mine.startswith(stream), "the block is serial, and parallel in the recording"),
        (mine == ITS_INPUT, f"the norm comes before {theirs}, and after it in the recording"),
        (theirs == ITS_INPUT, f"the norm comes after {mine}, and before it in the recording"),
    )
    return next((meaning for holds, meaning in meanings if holds), "")


def _exchanged(_module: Module, _given: object, trial: Trial) -> str:
    """Whether the port has another module's recorded output here."""
    mine = next((source.name for source in trial.elsewhere if trial.fits(source.values, trial.found)), None)
    if mine is None:
        return ""
    theirs = next((source.name for source in trial.elsewhere if trial.fits(source.values, trial.recorded)), None)
    return f"it uses {mine}" + (f", where the recording has {theirs}" if theirs else "")


def _where(trial: Trial) -> str:
    """The rows or channels that differ, unless most do."""
    off = np.abs(trial.found.astype(np.float64) - trial.recorded) > trial.tolerance * np.abs(trial.recorded).max()
    if off.ndim != 2 or not off.any():
        return ""
    rows, channels = np.flatnonzero(off.any(axis=1)), np.flatnonzero(off.any(axis=0))
    if 2 * len(channels) < off.shape[1]:
        return f"only channel {_few(channels)} of {off.shape[1]} differs"
    if 2 * len(rows) < len(off):
        return f"only row {_few(rows)} of {len(off)} differs"
    return ""


def _few(numbers: NDArray[Any]) -> str:
    shown = ", ".join(str(int(i)) for i in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, … ({len(numbers)})"


def _signed(n: int) -> str:
    return f"+{n}" if n > 0 else str(n)
