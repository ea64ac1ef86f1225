"""Tapping: a tree of modules whose every output passes through a hook, which may look at it or replace it.

The tapped tree is another tree over the same weights. The one it was made from knows nothing of it: a run without hooks
costs nothing, and other threads go on without them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from rushlight.nn.module import Module

AnyModule = TypeVar("AnyModule", bound=Module)

Hook = Callable[[str, Any], Any]
"""A module's dotted path and what it computed -> what its caller gets."""

Enter = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
"""A module's dotted path and the arguments it is called with -> those that it computes with."""


def tapped(module: AnyModule, hook: Hook, path: str = "", *, enter: Enter | None = None) -> AnyModule:
    """A shallow copy of the tree in which every module that computes hands its output to `hook`.

    Hooks are called in the order of the forward, a child's before its parent's. The root's path is empty. Of a tree
    that is tapped already, the hooks it has come first. `enter`, if there is one, is called before a module computes.
    """
    twin: Any = copy.copy(module)
    twin.__dict__["_versions"] = ()  # what changes from here on is the copy, not the original
    twin.__class__ = _tapped_class(twin.__class__)
    twin.__dict__["_taps"] = (*vars(module).get("_taps", ()), (path, hook, enter))
    for name, child in module.children():
        twin.set_child(name, tapped(child, hook, f"{path}.{name}" if path else name, enter=enter))
    return cast("AnyModule", twin)


class _Tapped:
    """Mixed into the class of a module in a tapped tree."""

    _taps: tuple[tuple[str, Hook, Enter | None], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for path, _, enter in self._taps:
            if enter is not None:
                args = enter(path, args)
        output = cast("Any", super()).__call__(*args, **kwargs)
        for path, hook, _ in self._taps:
            output = hook(path, output)
        return output


@cache
def _tapped_class(cls: type[Module]) -> type[Module]:
    """A subclass that runs the hooks; one for each class, not for each module. What computes nothing stays as it is."""
    if issubclass(cls, _Tapped) or "__call__" not in dir(cls):
        return cls
    return type(cls.__name__, (_Tapped, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
