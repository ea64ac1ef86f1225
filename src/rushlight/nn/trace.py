"""Traces and patches: what the modules of a tree put out, kept or replaced, as NumPy arrays under their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend

Patch = Callable[["NDArray[np.floating]"], "NDArray[np.floating]"]
"""(N, C) as a module computed it -> (N, C) as its caller gets it."""


class Trace(Mapping[str, "NDArray[np.floating]"]):
    """What every module put out, by its path, in the order in which they finished.

    `trace["h.3.mlp.c_fc"]` is (rows, C), float32: a row for each token that went through, in that order, over all calls
    while the trace was on. From where a model narrows to the rows whose logits are wanted, it has only those. The whole
    model's own output is under the empty path.

    Args:
        ops: the backend that computes.
        patterns: keep the modules that match one of them, `h.*.mlp`; all if there are none.
    """

    def __init__(self, ops: Backend, patterns: Iterable[str] = ()) -> None:
        self._ops = ops
        self._patterns = tuple(patterns)
        self._outputs: dict[str, list[Any]] = {}

    def hook(self, path: str, output: Any) -> Any:
        """For `rushlight.nn.tapped`: keeps the output and passes it on."""
        if not self._patterns or any(fnmatchcase(path, pattern) for pattern in self._patterns):
            self._outputs.setdefault(path, []).append(output)
        return output

    def __getitem__(self, path: str) -> NDArray[np.floating]:
        if path not in self._outputs:
            raise KeyError(f"no output of {path!r} was traced{_hint(path, self._outputs)}")
        # Copies: a backend's arrays may be views of memory that it will use again.
        return np.concatenate([np.array(self._ops.to_numpy(output)) for output in self._outputs[path]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} modules>"


def patch_hook(ops: Backend, patches: Mapping[str, Patch]) -> Callable[[str, Any], Any]:
    """For `rushlight.nn.tapped`: puts what a patch makes of a module's output in its place.

    The hook raises ValueError if a patch returns another shape.
    """

    def hook(path: str, output: Any) -> Any:
        if path not in patches:
            return output
        before = np.array(ops.to_numpy(output))
        after = np.asarray(patches[path](before.copy()), before.dtype)
        if after.shape != before.shape:
            raise ValueError(f"the patch of {path} made {after.shape} of {before.shape}")
        return ops.from_numpy(after)

    return hook


def check_paths(paths: Iterable[str], known: Iterable[str]) -> list[str]:
    """What to say of the paths that are not known: one text each, with the nearest one that is."""
    known = list(known)
    return [f"there is no module {path!r}{_hint(path, known)}" for path in paths if path not in known]


def _hint(path: str, known: Iterable[str]) -> str:
    close = get_close_matches(path, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
