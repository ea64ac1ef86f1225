"""Infers a layer of `rushlight.nn` from the name and the tensor shapes of a module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SQUARE", "Layer", "conv1d_by_majority", "infer_layer", "is_head_name", "is_table_name"]

Shape = tuple[int, ...]

_TABLE = re.compile(r"emb|^wte$|^wpe$|^shared$|^tok(ens)?$|^pos(itions?)?$", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln", re.IGNORECASE)
_HEAD = re.compile(r"embed_out|head|^output$|^score$", re.IGNORECASE)

SQUARE = "the shape of a square weight does not show its orientation; this is that of the other weights"


@dataclass(frozen=True)
class Layer:
    """A layer of `rushlight.nn`: `kind(*sizes, **options)`.

    Attributes:
        kind: its class.
        sizes: its positional arguments.
        options: its keyword arguments, as Python source.
        doubt: why it could be another layer; empty if it could not.
    """

    kind: str
    sizes: Shape
    options: tuple[tuple[str, str], ...] = ()
    doubt: str = ""


def conv1d_by_majority(tensors: Iterable[tuple[str, Shape]]) -> bool:
    """Whether a checkpoint's matrices are (in, out): whether biases match the last axis more often than the first.

    It decides the orientation of square matrices.
    """
    shapes = dict(tensors)
    votes = 0
    for name, shape in shapes.items():
        bias = shapes.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
        if bias and len(shape) == 2 and shape[0] != shape[1]:
            votes += (bias == shape[1:]) - (bias == shape[:1])
    return votes > 0


def is_head_name(name: str) -> bool:
    """Whether a module of this name with an embedding table's shape is the head: GPT-NeoX calls its head embed_out."""
    return bool(_HEAD.search(name))


def is_table_name(name: str) -> bool:
    """Whether a module of this name is an embedding table if its shape allows it."""
    return bool(_TABLE.search(name))


def infer_layer(
    name: str, tensors: Mapping[str, Shape], *, conv1d: bool, eps: str = "1e-5", is_head: bool = False
) -> Layer | None:
    """The layer that has exactly these tensors; None if `rushlight.nn` has no such layer.

    Args:
        name: the last part of the module's path.
        tensors: the shapes of its tensors.
        conv1d: whether matrices are (in, out) where their shapes do not show it.
        eps: the epsilon of norms, as Python source.
        is_head: whether a table of embeddings of the same shape is elsewhere, and this is the head.
    """
    if not {"weight"} <= set(tensors) <= {"weight", "bias"} or not all(map(all, tensors.values())):
        return None
    weight, bias = tensors["weight"], tensors.get("bias")
    no_bias = () if bias else (("bias", "False"),)
    layer = None
    if len(weight) == 1 and bias == weight:
        layer = Layer("LayerNorm", weight, (("eps", eps),))
    elif len(weight) == 1 and bias is None and _NORM.search(name):
        layer = Layer(
            "RMSNorm", weight, (("eps", eps),), "an RMSNorm; a LayerNorm with bias=False has the same tensors"
        )
    elif len(weight) == 2 and bias is None and not is_head and _TABLE.search(name):
        layer = Layer("Embedding", weight)
    elif len(weight) == 2 and bias in {None, weight[:1], weight[1:]}:
        square = weight[0] == weight[1]
        doubt = SQUARE if square else ""
        # Conv1D always has a bias, as long as the weight's last axis.
        if bias and (conv1d if square else bias == weight[1:]):
            layer = Layer("Conv1D", weight, (), doubt)
        else:
            layer = Layer("Linear", weight[::-1], no_bias, doubt)
    elif len(weight) == 3 and bias in {None, weight[:1]}:
        n_out, n_in, size = weight
        doubt = 'centred, as with padding="same"; a causal convolution has before = size - 1' if size > 1 else ""
        layer = Layer("Convolution", (n_in, n_out, size), (("before", str((size - 1) // 2)), *no_bias), doubt)
    return layer
