"""Builds a tree of modules from tensor names, and refuses names that Python attributes cannot have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rushlight.errors import PortError, first_ten, printable_name
from rushlight.nn import Module

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Node", "number", "tree_of"]

MAX_DEPTH = 32
"""Nesting of modules; real models have about six levels."""
MAX_DIGITS = 9
RESERVED = frozenset({*dir(Module), "ops", "_modules", "_taps"})
"""Attributes of `Module` itself, which a port's attributes may not shadow."""


def number(name: str) -> int | None:
    """The index that a module of a list is named by; None for any other name."""
    return int(name) if name.isascii() and name.isdigit() and len(name) <= MAX_DIGITS else None


@dataclass
class Node:
    """A module.

    Attributes:
        path: its dotted path; empty for the root.
        tensors: the shapes of its own tensors, by the last part of their names.
        children: its submodules by name, in the order of the file, or by number if all are numbered.
    """

    path: str = ""
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def is_list(self) -> bool:
        """Whether it contains only modules, numbered from 0 without a gap."""
        return (
            not self.tensors and bool(self.children) and [*self.children] == [str(i) for i in range(len(self.children))]
        )


def tree_of(tensors: Iterable[tuple[str, tuple[int, ...]]], file: str) -> Node:
    """The tree of modules for (name, shape) pairs.

    Raises:
        PortError: names that no tree of Python objects can have; the message lists them.
    """
    root = Node()
    problems = []
    for name, shape in tensors:
        *parents, last = name.split(".")
        if "" in (*parents, last):
            problems.append(f"{printable_name(name) or repr(name)} has an empty part")
        elif len(parents) > MAX_DEPTH:
            problems.append(f"{printable_name(name[:80])}… is more than {MAX_DEPTH} modules deep")
        elif taken := RESERVED.intersection((*parents, last)):
            problems.append(f"{printable_name(name)}: {min(taken)} is an attribute of every rushlight module")
        else:
            node = root
            for i, part in enumerate(parents):
                node = node.children.setdefault(part, Node(".".join(parents[: i + 1])))
            node.tensors[last] = shape
    problems += _ambiguous(root)
    if problems:
        raise PortError(
            "\n  ".join(["these names cannot be attributes of a module", *first_ten(problems)]),
            file=file,
            remedy="rename them in the checkpoint",
        )
    _sort(root)
    return root


def _ambiguous(node: Node) -> list[str]:
    """Names that belong both to a tensor and to a module."""
    problems = [
        f"{printable_name(node.children[name].path)} is both a tensor and a module"
        for name in node.tensors
        if name in node.children
    ]
    for child in node.children.values():
        problems += _ambiguous(child)
    return problems


def _sort(node: Node) -> None:
    """Sorts numbered children by their numbers."""
    if all(number(name) is not None for name in node.children):
        node.children = dict(sorted(node.children.items(), key=lambda item: (number(item[0]), item[0])))
    for child in node.children.values():
        _sort(child)
