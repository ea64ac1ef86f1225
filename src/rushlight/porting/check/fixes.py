"""The fixes that can be made by rote, as a few lines of Python that write a fixed checkpoint."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rushlight.checkpoint import Checkpoint

__all__ = ["FixScript"]

_NUMPY_DTYPES = frozenset("BOOL U8 I8 U16 I16 F16 U32 I32 F32 U64 I64 F64".split())
"""What `safetensors.numpy` reads; the rest needs `safetensors.torch`."""

MOST_ENDS = 50
"""More ways for names to end than a script is to list; and each is tried with every name."""


class FixScript:
    """A script that grows by a step for each fix; steps follow one another as the causes were found."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = [str(path) for path in checkpoint.files]
        self._torch = any(tensor.dtype not in _NUMPY_DTYPES for tensor in checkpoint.values())
        self._steps: list[str] = []

    def strip(self, words: str, *, anywhere: bool = False) -> None:
        """Takes `words` off the beginning of every name, or out of it wherever they stand as a part."""
        if anywhere:
            new = f'f".{{name}}".replace({_quoted(f".{words}")}, ".")[1:]'
        else:
            new = f"name.removeprefix({_quoted(words)})"
        self._steps.append(f"tensors = {{{new}: tensor for name, tensor in tensors.items()}}")

    def copy(self, old: str, new: str) -> None:
        """Gives a tensor a second name."""
        self._steps.append(f"tensors[{_quoted(new)}] = tensors[{_quoted(old)}].{'clone' if self._torch else 'copy'}()")

    def transpose(self, names: Collection[str], every: Iterable[str]) -> None:
        """Transposes the tensors of `names`, which are some of `every`."""
        turned = "T.contiguous()" if self._torch else "T.copy()"
        self._each(names, every, f"tensors[name] = tensors[name].{turned}")

    def add_zero_biases(self, weights: Collection[str], every: Iterable[str]) -> None:
        """Gives each of `weights` a bias of zeros beside it, as long as its last axis."""
        library = "torch" if self._torch else "np"
        zeros = f"{library}.zeros(tensors[name].shape[-1], dtype=tensors[name].dtype)"
        self._each(weights, every, f'tensors[name.removesuffix("weight") + "bias"] = {zeros}')

    def drop(self, names: Collection[str], every: Iterable[str]) -> None:
        """Leaves tensors out."""
        self._each(names, every, "del tensors[name]")

    def text(self) -> str | None:
        """The whole script; None where nothing is to be fixed."""
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

    def _each(self, names: Collection[str], every: Iterable[str], step: str) -> None:
        """`step` for each of `names`, told from the others by how their names end if that is possible."""
        if not names:
            return
        ends = sorted({re.split(r"\.\d+(?=\.)", name)[-1] for name in names})
        if len(ends) <= MOST_ENDS and {name for name in every if name.endswith(tuple(ends))} == set(names):
            self._steps.append(f"ends = {_tuple(ends)}")
            self._steps.append(f"for name in [name for name in tensors if name.endswith(ends)]:\n    {step}")
        else:
            self._steps.append(f"names = {_tuple(sorted(names))}")
            self._steps.append(f"for name in names:\n    {step}")


def _tuple(words: Iterable[str]) -> str:
    """A tuple of strings in Python, one a line."""
    return "(\n" + "".join(f"    {_quoted(word)},\n" for word in words) + ")"


def _quoted(text: str) -> str:
    """A string in Python. What JSON escapes, Python reads back."""
    return json.dumps(text, ensure_ascii=False)
