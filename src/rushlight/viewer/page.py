"""A module tree as one self-contained page: page.html with page.css, page.js and the tree's data written into it.

The page asks nothing of any network, and its Content-Security-Policy has the browser hold it to that: only the style
and the script whose hashes it names are run. Names from the file reach the page as JSON in which no "<" is left, and
the script shows them as text alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint.tree import ModuleNode, fold
from rushlight.errors import printable_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rushlight.checkpoint.stats import TensorStats
    from rushlight.checkpoint.tree import Entry, ModuleTree

__all__ = ["render_page", "write_page"]

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_page(path: str | os.PathLike[str], tree: ModuleTree, stats: Mapping[str, TensorStats] | None = None) -> None:
    """Write the page of `tree` to `path`, over what is there: whole, or not at all.

    Raises:
        OSError: the folder is not there or not to be written to, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    text = render_page(tree, stats)
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).chmod(0o666 & ~_umask())  # mkstemp lets nobody else read
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def render_page(tree: ModuleTree, stats: Mapping[str, TensorStats] | None = None) -> str:
    """The page of `tree` as HTML; with the statistics of its tensors by name, if they were taken."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_integrity(style)}'",
            f"script-src '{_integrity(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # In a script element only "</script" and "<!--" mean anything to the parser.
    data = json.dumps(_data(tree, stats), separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(printable_name(tree.source) or "checkpoint")
    parts = {"policy": policy, "title": title, "style": style, "script": script, "data": data}
    # One pass: what stands in a part is never taken for a slot.
    return _SLOT.sub(lambda slot: parts[slot[1]], _asset("page.html"))


def _data(tree: ModuleTree, stats: Mapping[str, TensorStats] | None) -> dict[str, Any]:
    """What page.js reads. Names are escaped for people, sizes are numbers, shapes are text."""
    return {
        "source": printable_name(tree.source),
        "architecture": tree.architecture,
        "files": [printable_name(name) for name in tree.files],
        "metadata": [[printable_name(key), printable_name(value)] for key, value in tree.metadata.items()],
        "nTensors": len(tree.tensors),
        "parameters": tree.n_parameters,
        "bytes": tree.nbytes,
        "dtypes": list(tree.dtypes.items()),
        "hasStats": stats is not None,
        **_entries(tree.root.entries, stats or {}),
    }


def _entries(entries: Sequence[Entry], stats: Mapping[str, TensorStats]) -> dict[str, Any]:
    """The entries of a module, and the lengths of the runs of equal ones among them."""
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


def _asset(name: str) -> str:
    return resources.files("rushlight.viewer").joinpath(name).read_text(encoding="utf-8")


def _integrity(text: str) -> str:
    """The hash by which a policy names an inline script or style (https://www.w3.org/TR/CSP3/#match-element-to-source-list)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _umask() -> int:
    """The mask of the process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
