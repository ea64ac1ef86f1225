"""Operations that wait for the one after them, so that a device does several in one launch.

In a step of few rows every operation is small, and a launch takes as long as what it launches. Model files name the
operations one by one all the same: `layer_norm`, `linear`, `activation`, `+`. What a backend hands them in between can
be `Deferred`: it says what is to be computed, the next operation says more, and whatever needs the value has it
computed, all in one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Norm(NamedTuple):
    """A layer norm: (C,) gain and shift, and what is added to the variance."""

    weight: Any
    bias: Any
    eps: float


class Fused(NamedTuple):
    """residual + activation(norm(x) Wᵀ + bias), without the parts that are None; without a weight it is norm(x).

    Attributes:
        x: (N, C) on the device.
        norm: of x.
        weight: (F, C), as the backend has placed it; it has a `shape`.
        bias: (F,).
        activation: a name of `rushlight.nn.ACTIVATIONS`.
        residual: (N, F) on the device.
    """

    x: Any
    norm: Norm | None = None
    weight: Any = None
    bias: Any = None
    activation: str | None = None
    residual: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        n, n_in = self.x.shape
        return n, n_in if self.weight is None else self.weight.shape[0]


class Deferred:
    """An activation (N, C) that is computed when its value is asked for, once.

    Args:
        fused: what it is.
        compute: computes it.
    """

    __slots__ = ("_compute", "_fused", "_value", "shape")

    def __init__(self, fused: Fused, compute: Callable[[Fused], Any]) -> None:
        self._fused: Fused | None = fused
        self._compute = compute
        self._value: Any = None
        self.shape = fused.shape

    @property
    def value(self) -> Any:
        """The array on the device."""
        if self._fused is not None:
            self._value = self._compute(self._fused)
            self._fused = None
        return self._value

    def normed(self) -> Fused | None:
        """What a linear can follow: a norm that nobody has asked for."""
        fused = self._fused
        return fused if fused is not None and fused.weight is None else None

    def product(self) -> Fused | None:
        """What an activation or a sum can follow: a linear that nobody has asked for."""
        fused = self._fused
        return fused if fused is not None and fused.weight is not None and fused.residual is None else None

    def __add__(self, other: Any) -> Any:
        for one, rest in ((self, other), (other, self)):
            product = one.product() if isinstance(one, Deferred) else None
            if product is not None and one.shape == tuple(rest.shape):
                return Deferred(product._replace(residual=value_of(rest)), one._compute)
        return self.value + value_of(other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return self.value * value_of(other)

    __rmul__ = __mul__


def value_of(x: Any) -> Any:
    """The array itself, computed if it was not."""
    return x.value if isinstance(x, Deferred) else x
