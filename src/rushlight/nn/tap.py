"""Hooks on modules: a copy of a module tree in which each output passes through a function.

The copy shares its weights with the original. The original is unchanged: it runs as fast as before, and other threads
can use it at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from rushlight.nn.module import Module

AnyModule = TypeVar("AnyModule", bound=Module)

Hook = Callable[[str, Any], Any]
"""A module's dotted path and its output -> the output that the caller gets."""

PreHook = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
"""A module's dotted path and its arguments -> the arguments that the module gets."""


def tapped(module: AnyModule, hook: Hook, path: str = "", *, pre_hook: PreHook | None = None) -> AnyModule:
    """A shallow copy of a module tree in which `hook` may inspect or replace the output of every module.

    Hooks run in the order of the forward pass, a child's before its parent's; the root's path is empty. If the tree
    already has hooks, those run first. `pre_hook` runs before each module, and may replace its arguments.
    """
    twin: Any = copy.copy(module)
    twin.__dict__["_versions"] = ()  # changes of the copy are not changes of the original
    twin.__class__ = _tapped_class(twin.__class__)
    twin.__dict__["_taps"] = (*vars(module).get("_taps", ()), (path, hook, pre_hook))
    for name, child in module.children():
        twin.set_child(name, tapped(child, hook, f"{path}.{name}" if path else name, pre_hook=pre_hook))
    return cast("AnyModule", twin)


class _Tapped:
    """The mixin that runs the hooks of a module in a tapped tree."""

    _taps: tuple[tuple[str, Hook, PreHook | None], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for path, _, pre_hook in self._taps:
            if pre_hook is not None:
                args = pre_hook(path, args)
        output = cast("Any", super()).__call__(*args, **kwargs)
        for path, hook, _ in self._taps:
            output = hook(path, output)
        return output


@cache
def _tapped_class(cls: type[Module]) -> type[Module]:
    """The subclass of a class that runs hooks, created once; a class without `__call__` is returned unchanged."""
    if issubclass(cls, _Tapped) or "__call__" not in dir(cls):
        return cls
    return type(cls.__name__, (_Tapped, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
