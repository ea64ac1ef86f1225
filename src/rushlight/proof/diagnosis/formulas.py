"""Finds why code between submodules diverges: which activation, product or sum gives each of the two arrays?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rushlight.backends.reference import ACTIVATION_FUNCTIONS
from rushlight.nn import Activation
from rushlight.proof.diagnosis.attention import SOFTCAPS, attention
from rushlight.proof.diagnosis.layers import scaled
from rushlight.proof.diagnosis.trial import ITS_INPUT, Floats, Source, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rushlight.nn import Module

__all__ = ["formulas"]

MAX_VALUES = 2**22
"""The largest number of values that formulas are tried on; of larger arrays the first rows are."""
MAX_SUM = 6
"""The largest number of terms in a sum that is tried."""


def formulas(module: Module, trial: Trial) -> tuple[str, str, str]:
    """A cause, and the formulas that give the port's array and the recorded one; each is empty if there is none."""
    if cause := attention(module, trial):
        return cause, "", ""
    n = max(8, MAX_VALUES // max(1, trial.found[:1].size))
    if n < len(trial.found):
        trial = trial.first_rows(n)
    theirs, mine = _formula(trial, trial.recorded), _formula(trial, trial.found)
    if isinstance(module, Activation):
        suffix = f" of {ITS_INPUT}"
        if theirs.text.endswith(suffix) and mine.text.endswith(suffix):
            theirs, mine = (Formula(each.text.removesuffix(suffix)) for each in (theirs, mine))
    if theirs.text and mine.text and theirs != mine:
        cause = f"it computes {mine.text} where the recording has {theirs.text}{_meaning(mine, theirs)}"
    elif theirs.text and not mine.text:
        cause = f"the recording has {theirs.text}"
    else:
        cause = scaled(module, None, trial)
    return cause, mine.text, theirs.text


class Formula(NamedTuple):
    """A formula in words, with its factors where it is a sum or a product.

    Attributes:
        text: the formula; empty if none was found.
        factors: of a sum, the factor of each term.
        product: of a product with an activation, the plain factor and the one that is activated.
    """

    text: str = ""
    factors: tuple[tuple[str, float], ...] = ()
    product: tuple[str, str] | None = None


def _meaning(mine: Formula, theirs: Formula) -> str:
    """What the difference of two formulas means, where it has a name."""
    if mine.product and theirs.product and mine.product == theirs.product[::-1]:
        return ": gate and up are exchanged"
    ours, other = dict(mine.factors), dict(theirs.factors)
    if ours and ours.keys() == other.keys():
        differ = [name for name in ours if not math.isclose(ours[name], other[name], rel_tol=1e-3)]
        if len(differ) == 1 and ours[differ[0]] == 1:
            return f": a factor of {other[differ[0]]:.4g} is missing"
        if len(differ) == 1 and other[differ[0]] == 1:
            return f": the factor of {ours[differ[0]]:.4g} is not in the recording"
    return ""


def _formula(trial: Trial, target: NDArray[Any]) -> Formula:
    own = [*trial.sources]
    # What the port has not called yet may be part of the recorded formula.
    return _formula_of(own, trial, target) or _formula_of([*own, *trial.later], trial, target) or Formula()


def _formula_of(sources: Sequence[Source], trial: Trial, target: NDArray[Any]) -> Formula | None:
    for name, values, product, is_source in _candidates(sources, target.shape):
        if trial.fits(values, target):
            return Formula(name, ((name, 1.0),) if is_source else (), product)
    if formula := _sum(sources, trial, target):
        return formula
    # A branch that is added to the residual stream.
    stream = next((s.values for s in sources if s.name == ITS_INPUT and s.values.shape == target.shape), None)
    for name, values, product, _ in _candidates(sources, target.shape) if stream is not None else ():
        if trial.fits(values + stream, target):
            return Formula(f"{ITS_INPUT} + {name}", (), product)
    return None


class _Candidate(NamedTuple):
    name: str
    values: Floats
    product: tuple[str, str] | None = None
    is_source: bool = False


def _candidates(sources: Sequence[Source], shape: tuple[int, ...]) -> Iterator[_Candidate]:
    """The values that a line of code between submodules may compute from one or two arrays."""
    sources = [Source(name, np.asarray(values, np.float64)) for name, values in sources if values.dtype.kind == "f"]
    for name, values in sources:
        if values.shape == shape:
            yield _Candidate(name, values, is_source=True)
            for function, apply in ACTIVATION_FUNCTIONS.items():
                yield _Candidate(f"{function} of {name}", apply(values))
            for cap in SOFTCAPS:
                yield _Candidate(f"a softcap of {cap:g} of {name}", cap * np.tanh(values / cap))
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
                yield _Candidate(f"{one} times {other}", a * b)
                for function, apply in ACTIVATION_FUNCTIONS.items():
                    yield _Candidate(f"{one} times {function} of {other}", a * apply(b), (one, other))


def _sum(sources: Sequence[Source], trial: Trial, target: NDArray[Any]) -> Formula | None:
    """The target as a linear combination of sources; None if it is not one."""
    terms = [source for source in sources if source.values.shape == target.shape][-MAX_SUM:]
    if not terms:
        return None
    columns = np.stack([np.asarray(term.values, np.float64).reshape(-1) for term in terms], axis=1)
    if not np.isfinite(target).all() or not np.isfinite(columns).all():
        return None
    factors = np.linalg.lstsq(columns, target.astype(np.float64).reshape(-1), rcond=None)[0]
    factors = np.where(np.abs(factors - np.round(factors)) < 1e-3, np.round(factors), factors)
    if not trial.fits((columns @ factors).reshape(target.shape), target):
        return None
    used = [(term.name, float(factor)) for factor, term in zip(factors, terms, strict=True) if factor != 0]
    parts = [name if factor == 1 else f"{factor:.4g} × {name}" for name, factor in used]
    return Formula(" + ".join(parts) or "zeros", tuple(used))
