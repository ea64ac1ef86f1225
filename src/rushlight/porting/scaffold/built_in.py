"""Writes a port from the file of a built-in architecture, with the layer classes and prefixes of the checkpoint.

The file is copied and only edited where the checkpoint differs: a Conv1D becomes a Linear where the weights are
transposed, a bias is turned off where the checkpoint has none, and the rules get the prefixes of its names.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from rushlight.nn import Role
from rushlight.porting.scaffold.model_file import OTHER_KIND, Change, ModelFile, with_layer_imports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.models import PretrainedModel
    from rushlight.nn import Module, Slot

__all__ = ["MismatchError", "layer_changes", "port_of_built_in"]

_MATRICES = (Role.CONV1D, Role.LINEAR)

Shape = tuple[int, ...]


class MismatchError(Exception):
    """A tensor has a name of the architecture's, but not the shape, even transposed."""

    def __init__(self, path: str, *, found: Shape, expected: Shape) -> None:
        super().__init__(path)
        self.path, self.found, self.expected = path, found, expected


def layer_changes(model: Module, shapes: Mapping[str, Shape]) -> dict[str, Change] | None:
    """The layers of a checkpoint that differ from a model's, by path; None if the tensors' names differ.

    Args:
        model: the built-in model, with empty slots.
        shapes: the checkpoint's tensors, by attribute path.

    Raises:
        MismatchError: a shape differs, and not by a transpose, or no layer has a transposed weight without a bias.
    """
    slots = dict(model.named_slots())
    if set(shapes) - set(slots) or any(path not in shapes and not path.endswith(".bias") for path in slots):
        return None
    matrices = {path: slot for path, slot in slots.items() if slot.role in _MATRICES}
    square = {path for path, slot in matrices.items() if _is_square(slot)}
    transposed = {path for path in matrices if path not in square and shapes[path] == slots[path].shape[::-1]}
    changes: dict[str, Change] = {}

    def all_transposed(role: Role) -> bool:
        others = {path for path, slot in matrices.items() if slot.role is role} - square
        return bool(others) and others <= transposed

    for path, slot in slots.items():
        layer = path.rpartition(".")[0]
        change = changes.get(layer, Change())
        if path not in shapes:
            changes[layer] = change._replace(no_bias=True)
        elif path in transposed and slot.role is Role.LINEAR and f"{layer}.bias" not in slots:
            raise MismatchError(path, found=shapes[path], expected=slot.shape)
        elif path in transposed:
            changes[layer] = change._replace(transposed=True)
        elif path in square and all_transposed(slot.role):
            changes[layer] = change._replace(transposed=True, square=True)
        elif shapes[path] != slot.shape:
            raise MismatchError(path, found=shapes[path], expected=slot.shape)
    return changes


def port_of_built_in(
    model: PretrainedModel,
    changes: Mapping[str, Change],
    prefixes: tuple[str, ...],
    docstring: list[str],
) -> str | None:
    """The source of a port: the architecture's own file, edited to fit the checkpoint.

    Args:
        model: the built-in model for the checkpoint.
        changes: the layers that differ, as `layer_changes` returns them.
        prefixes: the prefixes of the checkpoint's names.
        docstring: the first lines of the port's docstring.

    Returns:
        None if the file cannot be edited so: blocks differ from one another, or a layer has no such option.
    """
    file = ModelFile.of(model).with_prefixes(type(model), prefixes)
    modules = dict(model.named_modules())
    edits: dict[tuple[str, str], Change] = {}
    for path in {slot.rpartition(".")[0] for slot, _ in model.named_slots()}:
        change = changes.get(path, Change())
        parent, _, name = path.rpartition(".")
        if edits.setdefault((type(modules[parent]).__name__, name), change) != change:
            return None
        if change.no_bias and "bias" not in inspect.signature(_new_kind(modules[path], change)).parameters:
            return None
    for (owner, name), change in edits.items():
        if change != Change() and not file.change_layer(owner, name, change):
            return None
    file.set_docstring(docstring)
    return with_layer_imports(file.text())


def _is_square(slot: Slot) -> bool:
    return slot.shape[0] == slot.shape[1]


def _new_kind(layer: Module, change: Change) -> type[Module]:
    import rushlight.nn

    kind = type(layer).__name__
    new: type[Module] = getattr(rushlight.nn, OTHER_KIND[kind] if change.transposed else kind)
    return new
