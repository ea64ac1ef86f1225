"""Edits the source of a model file: its layers, prefixes, docstring, classes and imports."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import TYPE_CHECKING, NamedTuple

from rushlight.porting.scaffold.infer import SQUARE
from rushlight.porting.scaffold.source_text import imported, tuple_literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rushlight.models import Architecture
    from rushlight.nn import Module

__all__ = ["OTHER_KIND", "Change", "ModelFile", "with_layer_imports"]

OTHER_KIND = {"Conv1D": "Linear", "Linear": "Conv1D"}
"""The layer whose weight is the transpose of another's."""


class Change(NamedTuple):
    """How a layer of the checkpoint differs from the built-in model's.

    Attributes:
        transposed: whether its weight is the other way round, so that it is the other of Conv1D and Linear.
        no_bias: whether it lacks the bias.
        square: whether its weight is square, so that `transposed` is inferred from the other weights.
    """

    transposed: bool = False
    no_bias: bool = False
    square: bool = False


class ModelFile:
    """The source of a model file, and edits to it by position.

    Attributes:
        classes: its classes, by name.
        names: every name that it uses.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tree = ast.parse(source)
        self.classes = {node.name: node for node in self._tree.body if isinstance(node, ast.ClassDef)}
        self.names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        lines = self._source.encode().splitlines(keepends=True)
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        self._edits: list[tuple[int, int, str]] = []

    @classmethod
    def of(cls, model: Module) -> ModelFile:
        """The file of a model's class."""
        return cls(inspect.getsource(sys.modules[type(model).__module__]))

    def change_layer(self, owner: str, name: str, change: Change) -> bool:
        """Edits `self.name = Kind(...)` in the class `owner`; False if there is no such statement."""
        for node in ast.walk(self.classes.get(owner, ast.Module([], []))):
            match node:
                case (
                    ast.Assign(targets=[target], value=ast.Call(func=ast.Name(id=kind)) as call)
                    | ast.AnnAssign(target=target, value=ast.Call(func=ast.Name(id=kind)) as call)
                ) if isinstance(target, ast.Attribute) and target.attr == name:
                    break
        else:
            return False
        if change.transposed:
            self._replace(call.func, OTHER_KIND[kind])
        if change.square:
            at = self._offset(node.lineno, 0)
            self._edits.append((at, at, f"{' ' * node.col_offset}# Inferred: {SQUARE}.\n"))
        if change.no_bias:
            at = max(map(self._end, [*call.args, *(keyword.value for keyword in call.keywords)]))
            self._edits.append((at, at, ", bias=False"))
        return True

    def with_prefixes(self, architecture: Architecture, prefixes: tuple[str, ...]) -> ModelFile:
        """The file with `prefixes` in the rules of the architecture, which it may inherit from another file."""
        node = self.classes[architecture.__name__]
        literal = tuple_literal(prefixes)
        for statement in node.body:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id="rules")], value=ast.Call(func=ast.Name(id="NameRules")) as call)
                    | ast.AnnAssign(target=ast.Name(id="rules"), value=ast.Call(func=ast.Name(id="NameRules")) as call)
                ):
                    old = [keyword.value for keyword in call.keywords if keyword.arg == "prefixes"]
                    if old:
                        self._replace(old[0], literal)
                    else:
                        at = self._end(call.func) + 1
                        self._edits.append((at, at, f"prefixes={literal}, "))
                    return ModelFile(self.text())
        if prefixes != architecture.rules.prefixes:
            self._set_rules(node, literal)
        return ModelFile(self.text())

    def _set_rules(self, node: ast.ClassDef, prefixes: str) -> None:
        """Adds the rules of a class that inherits them, or replaces those that it derives from another's."""
        old = next((each for each in node.body if _assigned(each) == "rules"), None)
        if isinstance(old, ast.Assign | ast.AnnAssign) and old.value is not None:
            self._replace(old.value, f"replace({ast.unparse(old.value)}, prefixes={prefixes})")
        else:
            last = [each for each in node.body if _assigned(each) or isinstance(each, ast.Expr)][-1]
            line = f"\n    rules: ClassVar = replace({ast.unparse(node.bases[0])}.rules, prefixes={prefixes})"
            self._edits.append((self._end(last), self._end(last), line))
        dataclasses = next((each for each in self._tree.body if _module(each) == "dataclasses"), None)
        if dataclasses is None:
            first = next(each for each in self._tree.body if _module(each) not in {"", "__future__"})
            at = self._offset(first.lineno, 0)
            self._edits.append((at, at, "from dataclasses import replace\n"))
        elif isinstance(dataclasses, ast.ImportFrom):
            names = {alias.name for alias in dataclasses.names} | {"replace"}
            self._replace(dataclasses, f"from dataclasses import {', '.join(sorted(names))}")

    def set_docstring(self, lines: list[str]) -> None:
        """Replaces the first line of the module's docstring; what follows stays below."""
        docstring = self._tree.body[0]
        old = ast.get_docstring(self._tree, clean=False) or ""
        self._replace(docstring, '"""' + "\n".join([*lines, "", old.strip()]) + '\n"""')

    def set_classes(self, classes: Mapping[str, str], *, replaced: Iterable[str], before: str) -> None:
        """Removes the classes `replaced`, and writes `classes` in the place of the class `before`."""
        for name in replaced:
            node = self.classes[name]
            end = self._end(node)
            new = "\n\n".join(classes.values()).rstrip() if name == before else ""
            self._edits.append((self._offset(node.lineno, 0), end if new else end + len("\n\n\n"), new))

    def class_text(self, name: str, new_name: str, values: Mapping[str, list[str]], comments: Mapping[str, str]) -> str:
        """The source of a class under a new name, with new values and comments for its `self.attribute = value`."""
        node = self.classes[name]
        start, end = self._offset(node.lineno, 0), self._end(node)
        edits = [(start, start + len(f"class {name}"), f"class {new_name}")]
        for statement in ast.walk(node):
            match statement:
                case ast.Assign(targets=[ast.Attribute(attr=attribute)], value=value) if attribute in values:
                    new = "\n        ".join(values[attribute])
                    edits.append((self._offset(value.lineno, value.col_offset), self._end(value), new))
                    if attribute in comments:
                        at = self._offset(statement.lineno, statement.col_offset)
                        edits.append((at, at, f"{comments[attribute]}\n        "))
        growth = sum(len(new.encode()) - (end - start) for start, end, new in edits)
        return self._edited(edits)[start : end + growth].decode() + "\n"

    def segment(self, node: ast.stmt) -> str:
        """The source of a statement, with the indentation of its first line."""
        return self._source.encode()[self._offset(node.lineno, 0) : self._end(node)].decode()

    def text(self) -> str:
        """The edited source."""
        return self._edited(self._edits).decode()

    def _edited(self, edits: Iterable[tuple[int, int, str]]) -> bytes:
        content = self._source.encode()
        for start, end, new in sorted(edits, reverse=True):
            content = content[:start] + new.encode() + content[end:]
        return content

    def _replace(self, node: ast.expr | ast.stmt, new: str) -> None:
        self._edits.append((self._offset(node.lineno, node.col_offset), self._end(node), new))

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def _end(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.end_lineno or 0, node.end_col_offset or 0)


def with_layer_imports(source: str) -> str:
    """The source with its import from `rushlight.nn` adjusted to the names it uses."""
    import rushlight.nn

    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    top = next((node for node in imports if node.module == "rushlight.nn" and node in tree.body), None)
    if top is None:  # it imports its layers from the file of another model
        return source
    elsewhere = {alias.name for node in imports if node is not top for alias in node.names}
    lines = source.splitlines()
    lines[top.lineno - 1 : top.end_lineno] = imported("rushlight.nn", used & set(rushlight.nn.__all__) - elsewhere)
    return "\n".join(lines) + "\n"


def _assigned(node: ast.stmt) -> str:
    """The name that a statement of a class assigns to; empty for other statements."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return ""


def _module(node: ast.stmt) -> str:
    """The module that a statement imports from; empty for other statements."""
    return node.module or "" if isinstance(node, ast.ImportFrom) else ""
