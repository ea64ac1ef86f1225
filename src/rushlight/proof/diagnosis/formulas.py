"""Finds why code between submodules diverges: which activation, product or sum gives each of the two arrays?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.backends.reference import ACTIVATION_FUNCTIONS
from rushlight.nn import Activation
from rushlight.proof.diagnosis.attention import attention
from rushlight.proof.diagnosis.layers import scaled
from rushlight.proof.diagnosis.trial import ITS_INPUT, Source, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["formulas"]

MAX_SUM = 6
"""The largest number of terms in a sum that is tried."""


def formulas(module: Module, _given: object, trial: Trial) -> str:
    """The formulas that give the two arrays, or the one that gives the recorded array."""
    if cause := attention(module, trial):
        return cause
    theirs, mine = _formula(trial, trial.recorded), _formula(trial, trial.found)
    suffix = f" of {ITS_INPUT}"
    if isinstance(module, Activation) and theirs.endswith(suffix) and mine.endswith(suffix):
        theirs, mine = theirs.removesuffix(suffix), mine.removesuffix(suffix)
    if theirs and mine and theirs != mine:
        return f"it computes {mine} where the recording has {theirs}"
    if theirs and not mine:
        return f"the recording has {theirs}"
    return scaled(module, None, trial)


def _formula(trial: Trial, target: NDArray[Any]) -> str:
    for name, values in _candidates(trial.sources, target.shape):
        if trial.fits(values, target):
            return name
    if cause := _sum(trial, target):
        return cause
    # A branch that is added to the residual stream.
    stream = next((s.values for s in trial.sources if s.name == ITS_INPUT and s.values.shape == target.shape), None)
    for name, values in _candidates(trial.sources, target.shape) if stream is not None else ():
        if trial.fits(values + stream, target):
            return f"{ITS_INPUT} + {name}"
    return ""


def _candidates(sources: Sequence[Source], shape: tuple[int, ...]) -> Iterator[Source]:
    """The values that a line of code between submodules may compute from one or two arrays."""
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
    """The target as a linear combination of sources; empty if it is not one."""
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
