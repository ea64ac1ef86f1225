"""Writes a port of a variant of a built-in architecture: its file, with new classes for the modules that differ.

A module whose submodules have the names of the built-in one keeps the source of its class, with the layers that the
checkpoint shows. Any other module is left to write.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from rushlight.porting.scaffold.files import TO_WRITE, Scaffold, port_test
from rushlight.porting.scaffold.infer import SQUARE
from rushlight.porting.scaffold.model_file import with_layer_imports
from rushlight.porting.scaffold.source_text import room_for
from rushlight.porting.scaffold.tree import number
from rushlight.porting.scaffold.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import PretrainedModel
    from rushlight.nn import Module
    from rushlight.porting.scaffold.model_file import ModelFile
    from rushlight.porting.scaffold.tree import Node

__all__ = ["VariantWriter"]


class VariantWriter(Writer):
    """Writes the port of a variant.

    Args:
        checkpoint: the checkpoint.
        weights: the shapes of its weights, by attribute path.
        model: the built-in model that it is a variant of.
        sizes: the fields of the model's config that shapes show, and their values.
        file: the built-in model's file.
        prefixes: the prefixes of the checkpoint's names.
        docstring: the first lines of the port's docstring.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Mapping[str, tuple[int, ...]],
        *,
        model: PretrainedModel,
        sizes: Mapping[str, int],
        file: ModelFile,
        prefixes: tuple[str, ...],
        docstring: list[str],
    ) -> None:
        self.modules: dict[str, Module] = dict(model.named_modules())
        self.file = file.with_prefixes(type(model), prefixes)
        self.docstring = docstring
        self.shown = sizes
        super().__init__(checkpoint, [*weights.items()])
        self.taken |= {name for name in self.file.names if name not in self.file.classes}

    def root_stem(self) -> str:
        return type(self.modules[""]).__name__

    def name_sizes(self) -> dict[int, str]:
        return {value: name for name, value in reversed([*self.shown.items()]) if "layer" not in name}

    def count(self, node: Node) -> str:
        n = len(node.children)
        return next((f"config.{name}" for name, value in self.shown.items() if "layer" in name and value == n), str(n))

    def class_stem(self, node: Node) -> str:
        built_in = self.built_in(node)
        is_own = built_in is not None and type(built_in).__name__ in self.file.classes
        return type(built_in).__name__ if is_own else super().class_stem(node)

    def built_in(self, node: Node) -> Module | None:
        """The built-in module of the same path, whatever the number of its block."""
        return self.modules.get(re.sub(r"(?<![^.])[0-9]+(?![^.])", "0", node.path))

    def template(self, node: Node) -> ast.ClassDef | None:
        """The class of a built-in module with submodules of the same names; None if there is none."""
        module = self.built_in(node)
        if module is None or node.tensors:
            return None
        names = {path.partition(".")[0] for path, _ in module.named_slots()}
        return self.file.classes.get(type(module).__name__) if names == set(node.children) else None

    def takes_number(self, node: Node) -> bool:
        if not node.path or self.is_container(node) or self.layer(node):
            return False
        if template := self.template(node):
            init = next(each for each in template.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
            return any(argument.arg == "layer" for argument in init.args.args)
        return any(self.takes_number(child) and number(child.name) is None for child in node.children.values())

    def is_unchanged(self, node: Node) -> bool:
        """Whether the built-in class creates this submodule as the checkpoint has it."""
        module = self.built_in(node)
        if module is None:
            return False
        if self.is_container(node):
            same_length = node.is_list and len(node.children) == len(list(module.children()))
            return same_length and all(map(self.is_unchanged, node.children.values()))
        if node.children:
            return self.template(node) is not None and self.class_of(node) == type(module).__name__
        layer = self.layer(node)
        if layer and layer.doubt == SQUARE and layer.kind != type(module).__name__:
            return False  # its shape does not show its orientation, and the other weights do
        return node.tensors == {name: slot.shape for name, slot in module.named_slots()}

    def body(self, node: Node, name: str) -> str:
        template = self.template(node)
        if template is None:
            return super().body(node, name)
        values, comments = {}, {}
        for child_name, child in node.children.items():
            if not self.is_unchanged(child):
                values[child_name] = self.made(child, room_for(child_name))
                if (layer := self.layer(child)) and layer.doubt:
                    comments[child_name] = f"# Inferred: {layer.doubt}."
        return self.file.class_text(template.name, name, values, comments)

    def class_variables(self) -> list[str]:
        root = self.file.classes[self.root_name]
        variables = [each for each in root.body if isinstance(each, ast.Assign | ast.AnnAssign)]
        return [line for each in variables for line in self.file.segment(each).splitlines()]

    def scaffold(self, file: Path) -> Scaffold:
        self.class_of(self.root)
        own = {type(module).__name__ for module in self.modules.values()} & self.file.classes.keys()
        self.file.set_classes(self.classes, replaced=own, before=self.root_name)
        self.file.set_docstring([*self.docstring, *(["", TO_WRITE] if self.to_write else [])])
        test = port_test(self.checkpoint.source, file, computes_logits=not self.to_write)
        return Scaffold(with_layer_imports(self.file.text()), test, tuple(self.to_write))
