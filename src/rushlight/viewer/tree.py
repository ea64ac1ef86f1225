"""The web page of a module tree: foldable and searchable, with shapes, dtypes, sizes and marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rushlight.checkpoint.naming import display_name
from rushlight.checkpoint.tree import ModuleNode, fold
from rushlight.errors import printable_line, printable_name
from rushlight.viewer.page import render_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rushlight.checkpoint.stats import TensorStats
    from rushlight.checkpoint.tree import Entry, ModuleTree


def tree_page(tree: ModuleTree, stats: Mapping[str, TensorStats] | None = None) -> str:
    """The HTML page of a tree, with the statistics of its tensors by name if given."""
    return render_page("tree", _name(tree), _data(tree, stats))


def _name(tree: ModuleTree) -> str:
    return display_name(tree.source) if tree.source else "checkpoint"


def _data(tree: ModuleTree, stats: Mapping[str, TensorStats] | None) -> dict[str, Any]:
    """The data for tree.js: printable names, numeric sizes, and shapes as text."""
    return {
        "source": printable_name(_name(tree)),
        "architecture": tree.architecture,
        "files": [printable_name(name) for name in tree.files],
        "metadata": [[printable_name(key), printable_line(value)] for key, value in tree.shown_metadata.items()],
        "nTensors": len(tree.tensors),
        "parameters": tree.n_parameters,
        "bytes": tree.nbytes,
        "dtypes": list(tree.dtypes.items()),
        "hasStats": stats is not None,
        **_entries(tree.root.entries, stats or {}),
    }


def _entries(entries: Sequence[Entry], stats: Mapping[str, TensorStats]) -> dict[str, Any]:
    """The entries of a module, and the lengths of its runs of equal entries."""
    return {
        "entries": [_entry(entry, stats) for entry in entries],
        "runs": [equal.copies for equal in fold(entries)],
    }


def _entry(entry: Entry, stats: Mapping[str, TensorStats]) -> dict[str, Any]:
    label, node = entry
    sizes = {"label": printable_name(label) or '""', "parameters": node.n_parameters, "bytes": node.nbytes}
    if isinstance(node, ModuleNode):
        return sizes | _entries(node.entries, stats)
    leaf = sizes | {"dtype": node.dtype, "shape": str(node.shape)}
    if node.mark:
        leaf["mark"] = node.mark
    if node.name in stats:
        leaf["stats"] = stats[node.name].to_json()
    return leaf
