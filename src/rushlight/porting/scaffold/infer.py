"""Guessing a layer from the names and shapes of its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Layer", "conv1d_by_majority", "infer_layer"]

Shape = tuple[int, ...]

_TABLE = re.compile(r"emb|^wte$|^wpe$|^shared$|^tok(ens)?$|^pos(itions?)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """A layer of `rushlight.nn`: `kind(*sizes, **options)`.

    Attributes:
        kind: its class.
        sizes: the sizes that it takes, by position.
        options: what it takes by name, as Python.
        doubt: why it could be another layer; empty if it could not.
    """

    kind: str
    sizes: Shape
    options: tuple[tuple[str, str], ...] = ()
    doubt: str = ""


def conv1d_by_majority(tensors: Iterable[tuple[str, Shape]]) -> bool:
    """Whether the matrices of a checkpoint are (in, out): more biases are as long as the last axis than as the first.

    It is what decides for a square matrix.
    """
    shapes = dict(tensors)
    votes = 0
    for name, shape in shapes.items():
        bias = shapes.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
        if bias and len(shape) == 2 and shape[0] != shape[1]:
            votes += (bias == shape[1:]) - (bias == shape[:1])
    return votes > 0


def infer_layer(name: str, tensors: Mapping[str, Shape], *, conv1d: bool, eps: str = "1e-5") -> Layer | None:
    """The layer that has exactly these tensors; None if `rushlight.nn` has no such layer.

    Args:
        name: of the module: the last part of its path.
        tensors: its tensors' shapes.
        conv1d: which way round the checkpoint's matrices are where nothing else tells.
        eps: of layer norms, as Python.
    """
    if not {"weight"} <= set(tensors) <= {"weight", "bias"} or not all(map(all, tensors.values())):
        return None
    weight, bias = tensors["weight"], tensors.get("bias")
    no_bias = () if bias else (("bias", "False"),)
    layer = None
    if len(weight) == 1 and bias == weight:
        layer = Layer("LayerNorm", weight, (("eps", eps),))
    elif len(weight) == 2 and bias is None and _TABLE.search(name):
        layer = Layer("Embedding", weight)
    elif len(weight) == 2 and bias in {None, weight[:1], weight[1:]}:
        square = weight[0] == weight[1]
        doubt = "a square weight may be either way round; here as the others are" if square else ""
        # Conv1D always has a bias, and one as long as the weight's last axis.
        if bias and (conv1d if square else bias == weight[1:]):
            layer = Layer("Conv1D", weight, (), doubt)
        else:
            layer = Layer("Linear", weight[::-1], no_bias, doubt)
    elif len(weight) == 3 and bias in {None, weight[:1]}:
        n_out, n_in, size = weight
        doubt = 'centred, as padding="same" is; of a causal one, before is size - 1' if size > 1 else ""
        layer = Layer("Convolution", (n_in, n_out, size), (("before", str((size - 1) // 2)), *no_bias), doubt)
    return layer
