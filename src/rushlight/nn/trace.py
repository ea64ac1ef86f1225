"""Traces and patches: record or replace module outputs, as NumPy arrays, by path."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend

Patch = Callable[["NDArray[np.floating]"], "NDArray[np.floating]"]
"""A module's output, (N, C) -> the output that the caller gets, (N, C)."""


class Trace(Mapping[str, "NDArray[np.floating]"]):
    """Module outputs by path, in the order in which the modules finished.

    `trace["h.3.mlp.c_fc"]` is (rows, C), float32: one row for each token computed during the trace, in order. Modules
    after the selection of logit rows have only those rows. The output of the model has the path "".

    Args:
        ops: the backend that computes.
        patterns: patterns of paths to record, such as `h.*.mlp`; all if there are none.
    """

    def __init__(self, ops: Backend, patterns: Iterable[str] = ()) -> None:
        self._ops = ops
        self._patterns = tuple(patterns)
        self._outputs: dict[str, list[Any]] = {}

    def hook(self, path: str, output: Any) -> Any:
        """A hook for `rushlight.nn.tapped` that records outputs."""
        if not self._patterns or any(fnmatchcase(path, pattern) for pattern in self._patterns):
            self._outputs.setdefault(path, []).append(output)
        return output

    def __getitem__(self, path: str) -> NDArray[np.floating]:
        if path not in self._outputs:
            raise KeyError(f"not in the trace: {path!r}{_hint(path, self._outputs)}")
        # Copies: a backend's arrays may be views of memory that it reuses.
        return np.concatenate([np.array(self._ops.to_numpy(output)) for output in self._outputs[path]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} modules>"


def patch_hook(ops: Backend, patches: Mapping[str, Patch]) -> Callable[[str, Any], Any]:
    """A hook for `rushlight.nn.tapped` that replaces module outputs by the results of their patches.

    The hook raises RequestError if a patch returns another shape.
    """

    @cache
    def patches_of(path: str) -> list[Patch]:
        return [patch for pattern, patch in patches.items() if fnmatchcase(path, pattern)]

    def hook(path: str, output: Any) -> Any:
        if not patches_of(path):
            return output
        values = np.array(ops.to_numpy(output))
        for patch in patches_of(path):
            values = _patched(path, patch, values)
        return ops.from_numpy(values)

    return hook


def _patched(path: str, patch: Patch, before: NDArray[np.floating]) -> NDArray[np.floating]:
    returned = patch(before.copy())
    try:
        after = np.asarray(returned, before.dtype)
    except (TypeError, ValueError):
        raise RequestError(
            f"the patch of {path} must return numbers", expected="an array", found=type(returned).__name__
        ) from None
    if after.shape != before.shape:
        raise RequestError(
            f"the patch of {path} changed the shape",
            expected=before.shape,
            found="None" if returned is None else after.shape,
        )
    return after


def check_patches(patches: object, known: Iterable[str]) -> None:
    """Raises RequestError unless `patches` maps patterns that match `known` paths to functions."""
    if not isinstance(patches, Mapping):
        raise RequestError(
            "patches must map paths to functions",
            expected='a dict such as {"h.3.attn": lambda x: 0 * x}',
            found=type(patches).__name__,
        )
    check_patterns(patches, known)
    for pattern, patch in patches.items():
        if not callable(patch):
            raise RequestError(
                f"the patch of {pattern!r} is not a function",
                found=type(patch).__name__,
                remedy=f'pass a function that returns the new output: {{"{pattern}": lambda x: values}}',
            )


def check_patterns(patterns: Iterable[object], known: Iterable[str]) -> None:
    """Raises RequestError unless each pattern matches a `known` path; the message suggests the closest one."""
    known = list(known)
    problems = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            problems.append(f"expected the path of a module, such as {known[-1]!r}, found {reprlib.repr(pattern)}")
        elif not any(fnmatchcase(path, pattern) for path in known):
            problems.append(f"no such module: {pattern!r}{_hint(pattern, known)}")
    if problems:
        raise RequestError("; ".join(problems))


def _hint(path: str, known: Iterable[str]) -> str:
    close = get_close_matches(path, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
