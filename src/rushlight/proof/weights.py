"""Compares the weights of a checkpoint with the recorded ones, and describes the differences."""

from __future__ import annotations

from itertools import islice, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.checkpoint.dtypes import FLOAT_DTYPES
from rushlight.proof.digest import tensor_digest, values_digest
from rushlight.proof.report import WeightDifference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from rushlight.checkpoint import Tensor
    from rushlight.nn import NameRules
    from rushlight.proof.golden import Golden

__all__ = ["weight_differences"]

MAX_EXAMINED = 50
"""The number of differing tensors that are analysed."""


def weight_differences(tensors: Mapping[str, Tensor], golden: Golden, rules: NameRules) -> list[WeightDifference]:
    """The tensors that differ from the recorded ones; buffers that the port does not use are skipped."""
    recorded = {rules.module_path(name): digest for name, digest in golden.weights.items()}
    differing = [
        (tensor, recorded.get(path))
        for tensor in tensors.values()
        if not rules.is_buffer(tensor.name)
        and recorded.get(path := rules.canonical(tensor.name)) != tensor_digest(tensor)
        and not (path in rules.tied and path not in recorded)
    ]
    examined = [
        WeightDifference(tensor.name, _how(tensor, digest)) for tensor, digest in islice(differing, MAX_EXAMINED)
    ]
    return examined + [WeightDifference(tensor.name, "other values") for tensor, _ in differing[MAX_EXAMINED:]]


def _how(tensor: Tensor, recorded: str | None) -> str:
    if recorded is None:
        return "not recorded"
    if tensor.dtype not in FLOAT_DTYPES:
        return "other values"
    values = tensor.float32()
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        how = f"{n_bad:,} of {values.size:,} values are NaN or infinite"
    elif moved := [name for name, other in _rearranged(values) if values_digest(other) == recorded]:
        how = moved[0]
    elif not values.any():
        how = "all zeros"
    elif tensor.dtype in ("BF16", "F16") or not (values.view(np.uint32) & 0xFFFF).any():
        name = "float16" if tensor.dtype == "F16" else "bfloat16"
        how = f"rounded to {name}, unlike the recorded values"
    else:
        how = "other values"
    return how


def _rearranged(values: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The same numbers in other arrangements that they may have had in the recording."""
    if values.ndim == 2:
        yield "transposed", values.T
    if values.ndim:
        for step in (-1, 1):
            yield f"its rows are shifted by {-step}", np.roll(values, step, axis=0)
    for axis in {0, values.ndim - 1} if values.ndim else ():
        for n in (2, 3):
            if values.shape[axis] % n == 0:
                parts = np.split(values, n, axis=axis)
                for order in islice(permutations(range(n)), 1, None):
                    yield _order(order), np.concatenate([parts[i] for i in order], axis=axis)


def _order(order: tuple[int, ...]) -> str:
    if len(order) == 2:
        return "its halves are swapped"
    return "q and k are swapped (two of its thirds)" if order == (1, 0, 2) else "its thirds are in another order"
