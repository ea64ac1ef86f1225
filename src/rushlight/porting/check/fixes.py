"""The fixes that need no decision, as a short Python script that writes a fixed checkpoint."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rushlight.checkpoint import Checkpoint

__all__ = ["FixScript"]

_NUMPY_DTYPES = frozenset("BOOL U8 I8 U16 I16 F16 U32 I32 F32 U64 I64 F64".split())
"""The dtypes that `safetensors.numpy` reads; the others need `safetensors.torch`."""

MAX_SUFFIXES = 50
"""Scripts select tensors by at most this many suffixes: a longer list is hard to read and slow to match."""


class FixScript:
    """Collects one step per fix, in the order the causes were found, and writes them as a script."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = [str(path) for path in checkpoint.files]
        self._torch = any(tensor.dtype not in _NUMPY_DTYPES for tensor in checkpoint.values())
        self._steps: list[str] = []

    def strip(self, part: str, *, anywhere: bool = False) -> None:
        """Removes `part` from the front of every name, or with `anywhere` from any place at a module boundary."""
        if anywhere:
            new = f'f".{{name}}".replace({_quoted(f".{part}")}, ".")[1:]'
        else:
            new = f"name.removeprefix({_quoted(part)})"
        self._steps.append(f"tensors = {{{new}: tensor for name, tensor in tensors.items()}}")

    def transpose(self, names: Collection[str], all_names: Iterable[str]) -> None:
        """Transposes the tensors `names`."""
        transposed = "T.contiguous()" if self._torch else "T.copy()"
        self._for_each(names, all_names, f"tensors[name] = tensors[name].{transposed}")

    def add_zero_biases(self, weights: Collection[str], all_names: Iterable[str]) -> None:
        """Adds a bias of zeros next to each of `weights`, as long as its last axis."""
        library = "torch" if self._torch else "np"
        zeros = f"{library}.zeros(tensors[name].shape[-1], dtype=tensors[name].dtype)"
        self._for_each(weights, all_names, f'tensors[name.removesuffix("weight") + "bias"] = {zeros}')

    def drop(self, names: Collection[str], all_names: Iterable[str]) -> None:
        """Removes the tensors `names`."""
        self._for_each(names, all_names, "del tensors[name]")

    def text(self) -> str | None:
        """The complete script; None if it would have no steps."""
        if not self._steps:
            return None
        framework = "torch" if self._torch else "numpy"
        lines = [f"from safetensors.{framework} import load_file, save_file", ""]
        if any("np.zeros" in step or "torch.zeros" in step for step in self._steps):
            lines.insert(0, "import torch" if self._torch else "import numpy as np")
        first, *more = self._files
        lines.append(f"tensors = load_file({_quoted(first)})")
        lines += [f"tensors |= load_file({_quoted(file)})" for file in more]
        lines += self._steps
        lines.append('save_file(tensors, "fixed.safetensors", metadata={"format": "pt"})')
        return "\n".join(lines) + "\n"

    def _for_each(self, names: Collection[str], all_names: Iterable[str], step: str) -> None:
        """Applies `step` to `names`, selected from `all_names` by suffix where that is unambiguous."""
        if not names:
            return
        suffixes = sorted({re.split(r"\.\d+(?=\.)", name)[-1] for name in names})
        if len(suffixes) <= MAX_SUFFIXES and {n for n in all_names if n.endswith(tuple(suffixes))} == set(names):
            self._steps.append(f"suffixes = {_tuple(suffixes)}")
            self._steps.append(f"for name in [name for name in tensors if name.endswith(suffixes)]:\n    {step}")
        else:
            self._steps.append(f"names = {_tuple(sorted(names))}")
            self._steps.append(f"for name in names:\n    {step}")


def _tuple(words: Iterable[str]) -> str:
    """A tuple of strings as Python source, one per line."""
    return "(\n" + "".join(f"    {_quoted(word)},\n" for word in words) + ")"


def _quoted(text: str) -> str:
    """A string as Python source: Python reads every escape that JSON writes."""
    return json.dumps(text, ensure_ascii=False)
