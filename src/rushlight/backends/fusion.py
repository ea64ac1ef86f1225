"""Deferred operations: each waits for the next one, so that a device computes several in one launch.

In a step of few rows every operation is small, and launching it takes as long as computing it. Model files still call
the operations one by one: `layer_norm`, `linear`, `activation`, `*`, `+`. A backend may return a `Deferred` from them,
a description of the result so far. The next operation extends the description, and the value is computed, in one
launch, when something needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Norm(NamedTuple):
    """A layer norm, or an RMS norm of entire rows.

    Attributes:
        weight: (C,) the gain.
        bias: (C,) or None.
        eps: added to the variance, or to the mean of squares.
        offset: added to the gain.
        rms: whether it is an RMS norm, which subtracts no mean.
    """

    weight: Any
    bias: Any
    eps: float
    offset: float = 0.0
    rms: bool = False


class Fused(NamedTuple):
    """residual + factor · gated · activation(norm(x) Wᵀ + bias), without the parts that are None; without a weight,
    norm(x).

    Attributes:
        x: (N, C) on the device.
        norm: of x.
        weight: (F, C), in the form that the backend multiplies by; it has a `shape`.
        bias: (F,).
        activation: a name of `rushlight.nn.ACTIVATIONS`.
        factor: a number.
        gated: (N, F) on the device, what the activation is a gate of.
        residual: (N, F) on the device.
    """

    x: Any
    norm: Norm | None = None
    weight: Any = None
    bias: Any = None
    activation: str | None = None
    factor: float | None = None
    gated: Any = None
    residual: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        n, n_in = self.x.shape
        return n, n_in if self.weight is None else self.weight.shape[0]


class Deferred:
    """An activation (N, C) that is computed once, when its value is needed.

    Args:
        fused: the operations that compute it.
        compute: runs them.
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
        """The description, if it is a norm that is not computed yet: a linear can extend it."""
        fused = self._fused
        return fused if fused is not None and fused.weight is None else None

    def product(self) -> Fused | None:
        """The description, if it is a linear that is not computed yet: an activation, product or sum can extend it."""
        fused = self._fused
        return fused if fused is not None and fused.weight is not None and fused.residual is None else None

    def activated(self, name: str) -> Deferred | None:
        """With an activation, if it can be a part of the product."""
        product = self.product()
        if product is None or (product.activation, product.factor) != (None, None) or product.gated is not None:
            return None
        return Deferred(product._replace(activation=name), self._compute)

    def __add__(self, other: Any) -> Any:
        for one, rest in ((self, other), (other, self)):
            product = one.product() if isinstance(one, Deferred) else None
            if product is not None and one.shape == tuple(rest.shape):
                return Deferred(product._replace(residual=value_of(rest)), one._compute)
        return self.value + value_of(other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int | float):
            product = self.product()
            if product is None:
                return self.value * other
            factor = other if product.factor is None else product.factor * other
            return Deferred(product._replace(factor=factor), self._compute)
        for one, rest in ((self, other), (other, self)):
            product = one.product() if isinstance(one, Deferred) and one is not rest else None
            if product is not None and product.gated is None and one.shape == tuple(rest.shape):
                return Deferred(product._replace(gated=value_of(rest)), one._compute)
        return self.value * value_of(other)

    __rmul__ = __mul__


def value_of(x: Any) -> Any:
    """The array itself, computed if it was deferred."""
    return x.value if isinstance(x, Deferred) else x
