"""Loaded parameters that only operations compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from rushlight.backends.protocol import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OpaqueWeight:
    """A parameter whose arithmetic raises TypeError, on every backend alike.

    Some devices pack their weights. A port that multiplied one would work where weights are arrays and fail on the
    default device; so it fails everywhere, in the line that is wrong.
    """

    __slots__ = ()

    __array_ufunc__ = None  # NumPy's operators then call the ones below

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError(
            "a weight is opaque: pass it to an operation of self.ops, or read its numbers with "
            'self.values("weight"), the name being its attribute'
        )

    __array__ = __getitem__ = __len__ = __iter__ = __neg__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = _refuse


class ArrayWeight(OpaqueWeight):
    """A parameter as the arrays of a library such as PyTorch or MLX.

    Attributes:
        values: (C,) for VECTOR and CONSTANT, otherwise (n_out, n_in), in whatever form the backend multiplies by.
        shape: that of the checkpoint's tensor.
        role: how it is used.
    """

    __slots__ = ("role", "shape", "values")

    def __init__(self, values: Any, shape: tuple[int, ...], role: Role) -> None:
        self.values = values
        self.shape = shape
        self.role = role

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)

    def as_loaded(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """The numbers of `values` -> a copy in the tensor's own shape."""
        if self.role is Role.CONV1D:
            matrix = matrix.T
        elif self.role is Role.CONVOLUTION:
            n_out, n_in, size = self.shape
            matrix = matrix.reshape(n_out, size, n_in).transpose(0, 2, 1)
        return np.array(matrix.reshape(self.shape), np.float32)
