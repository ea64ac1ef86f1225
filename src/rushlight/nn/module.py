"""Modules: trees of layers in which a parameter's attribute path is its tensor's name."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.errors import PortError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend, Role

    Numbers = Sequence[float] | NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Slot:
    """A placeholder for a parameter: its shape and role, without memory. `bind` replaces it with the weight."""

    shape: tuple[int, ...]
    role: Role

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


class Constant:
    """Numbers that follow from the config and are in no checkpoint: rotary frequencies, ALiBi slopes.

    `bind` loads them in float32 on every backend, for every weight dtype.

    Args:
        values: (n,) the numbers, or a function that returns them. It is called once, when they are first used: while
            the weights are read, so that a function that imports NumPy does not delay them.
    """

    def __init__(self, values: Numbers | Callable[[], Numbers]) -> None:
        self._values = values

    @property
    def values(self) -> Numbers:
        """(n,) the numbers."""
        if callable(self._values):
            self._values = self._values()
        return self._values


class Version:
    """Counts the changes of one module tree; its modules share it."""

    __slots__ = ("n_changes",)

    def __init__(self) -> None:
        self.n_changes = 0


class Module:
    """A part of a model. Its attributes are slots, constants, other modules and settings, and never state of a run.

    A subclass sets them in `__init__` and computes its output in `__call__`:

        class MLP(Module):
            def __init__(self, config):
                self.c_fc = Conv1D(config.n_embd, config.n_inner)
                self.act = Activation("gelu_tanh")
                self.c_proj = Conv1D(config.n_inner, config.n_embd)

            def __call__(self, x):
                return self.c_proj(self.act(self.c_fc(x)))

    The tensor `c_fc.weight` is then loaded into the attribute `c_fc.weight`.
    """

    causal: ClassVar[bool] = True
    """Whether a row depends only on earlier rows. If not, an entire sequence must run in one step, and the model cannot
    generate."""

    ops: Backend
    """The backend that computes this module; set by `bind`."""
    _versions: tuple[Version, ...] = ()
    """The versions of the bound trees that contain this module: one, unless trees share it."""

    @property
    def version(self) -> int:
        """Increases when an attribute is set or deleted anywhere in this module's tree, once the tree is bound.

        A step that a backend has recorded is valid as long as the version is the same. Changes of other trees, and of
        tapped copies of this one, do not count.
        """
        return sum(version.n_changes for version in self._versions)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        for version in self._versions:
            version.n_changes += 1
            self.track(version)  # includes a module that was just added

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        for version in self._versions:
            version.n_changes += 1

    def track(self, version: Version) -> None:
        """Counts changes of this module and its descendants in `version`."""
        for _, module in self.named_modules():
            if version not in module._versions:
                module.__dict__["_versions"] = (*module._versions, version)

    __call__: Callable[..., Any]
    """Computes the module's output; each subclass defines it."""

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, by attribute name, in the order in which they were set."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def set_child(self, name: str, child: Module) -> None:
        """Replaces a child."""
        setattr(self, name, child)

    def named_modules(self, path: str = "") -> Iterator[tuple[str, Module]]:
        """This module and its descendants, parents first, by dotted path; the root's path is empty."""
        yield path, self
        for name, child in self.children():
            yield from child.named_modules(f"{path}.{name}" if path else name)

    def named_slots(self) -> Iterator[tuple[str, Slot]]:
        """Every slot that is not bound yet, by tensor name."""
        return self._named(Slot)

    def named_constants(self) -> Iterator[tuple[str, Constant]]:
        """Every constant that is not bound yet, by attribute path."""
        return self._named(Constant)

    def _named(self, kind: type[Any]) -> Iterator[tuple[str, Any]]:
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield f"{path}.{name}" if path else name, value

    def values(self, name: str) -> NDArray[np.float32]:
        """A copy of the values of a bound parameter of this module, such as "weight", in the shape of its tensor.

        Weights are packed for their device and only usable by operations; this is the way to read one.

        Raises:
            PortError: the attribute is not a loaded parameter.
        """
        weight = getattr(self, name)
        if weight is None or isinstance(weight, Slot | Constant):
            raise PortError(
                f"{type(self).__name__}.{name} has no values",
                expected="a loaded parameter",
                found="None" if weight is None else "one that is not loaded yet",
            )
        return self.ops.weight_values(weight)

    def __repr__(self) -> str:
        """The tree in PyTorch's format, one line per module."""
        lines = []
        for path, module in self.named_modules():
            depth = path.count(".") + 1 if path else 0
            label = f"({path.rpartition('.')[2]}): " if path else ""
            lines.append("  " * depth + label + module.describe())
        return "\n".join(lines)

    def describe(self) -> str:
        """This module in one line, without its children."""
        return type(self).__name__


class ModuleList(Module):
    """Modules numbered from 0: the tensors of the first in `self.h = ModuleList(...)` are `h.0.…`."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self._modules = list(modules)

    def children(self) -> Iterator[tuple[str, Module]]:
        for i, module in enumerate(self._modules):
            yield str(i), module

    def set_child(self, name: str, child: Module) -> None:
        modules = self._modules.copy()  # another tree may share the list
        modules[int(name)] = child
        self._modules = modules

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, i: int) -> Any:
        return self._modules[i]


class ModuleDict(Module):
    """Modules by name, for names that are not Python identifiers, or numbers with gaps.

    PyTorch's Sequential has gaps, `features.0`, `features.3`, where layers have no weights.
    """

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self._modules = dict(modules)

    def children(self) -> Iterator[tuple[str, Module]]:
        yield from self._modules.items()

    def set_child(self, name: str, child: Module) -> None:
        self._modules = self._modules | {name: child}  # another tree may share the dict

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]


def to_write(module: Module) -> PortError:
    """The error for a module whose `__call__` is not written yet, which the scaffolds of `rushlight port` raise."""
    kind = type(module)
    return PortError(
        f"{kind.__name__}.__call__ is still to be written",
        file=getattr(sys.modules.get(kind.__module__), "__file__", None),
        remedy="replace its `raise to_write(self)` with the forward pass",
    )
