"""Notes the attention and the rotations that a port computes, so that their causes are tried on its own arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch
    from rushlight.backends.protocol import Backend

__all__ = ["AttentionCall", "Noted", "NotedOperations", "Rotation"]


@dataclass(frozen=True)
class Rotation:
    """A call of `rotary`: its argument, its result, and the angles."""

    given: NDArray[Any]
    turned: NDArray[Any]
    angles: NDArray[Any]
    interleaved: bool


@dataclass(frozen=True)
class AttentionCall:
    """A call of `attention`: queries and keys before their rotation, if they were turned, and its settings."""

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    layer: int
    n_head: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: NDArray[Any] | None = None
    q_rotation: Rotation | None = None
    k_rotation: Rotation | None = None


@dataclass
class Noted:
    """What a module in progress has computed itself.

    Attributes:
        rotations: (the result as the port holds it, the call).
        attention: the last call.
    """

    rotations: list[tuple[Any, Rotation]] = field(default_factory=list)
    attention: AttentionCall | None = None

    def rotation_of(self, x: Any) -> Rotation | None:
        """The rotation that returned this object."""
        return next((rotation for turned, rotation in self.rotations if turned is x), None)


class NotedOperations:
    """A backend that notes calls of `rotary` and `attention` in `noted`, and passes everything on."""

    def __init__(self, ops: Backend) -> None:
        self._ops = ops
        self.noted = Noted()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def rotary(self, x: Any, angles: Any, n_head: int, *, interleaved: bool = False) -> Any:
        given = self._array(x)
        turned = self._ops.rotary(x, angles, n_head, interleaved=interleaved)
        rotation = Rotation(given, self._array(turned), self._array(angles), interleaved)
        self.noted.rotations.append((turned, rotation))
        return turned

    def attention(self, q: Any, k: Any, v: Any, batch: Batch, *, layer: int, n_head: int, **settings: Any) -> Any:
        turned = [self.noted.rotation_of(x) for x in (q, k)]
        q_given, k_given = (
            self._array(x) if rotation is None else rotation.given for x, rotation in zip((q, k), turned, strict=True)
        )
        slopes = settings.get("slopes")
        self.noted.attention = AttentionCall(
            q_given,
            k_given,
            self._array(v),
            layer,
            n_head,
            settings["scale"],
            settings.get("window"),
            settings.get("softcap"),
            None if slopes is None else self._ops.weight_values(slopes),
            *turned,
        )
        return self._ops.attention(q, k, v, batch, layer=layer, n_head=n_head, **settings)

    def _array(self, x: Any) -> NDArray[Any]:
        # A copy, because a backend's arrays may be views of memory that it reuses.
        return np.array(self._ops.to_numpy(x), np.float64)
