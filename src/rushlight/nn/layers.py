"""Layers, each with PyTorch's parameter names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rushlight.backends.protocol import Role
from rushlight.nn.module import Constant, Module, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch
    from rushlight.backends.protocol import Array
    from rushlight.nn.module import Numbers

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "silu", "quick_gelu", "sigmoid", "tanh")
"""The activation functions that every backend computes:

    gelu_tanh    0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))   Hendrycks and Gimpel, arXiv:1606.08415
    gelu_erf     0.5 x (1 + erf(x / √2))                      the same paper, exactly
    relu         max(x, 0)
    silu         x / (1 + exp(-x))
    quick_gelu   x / (1 + exp(-1.702 x))                      the same paper's sigmoid approximation
    sigmoid      1 / (1 + exp(-x))
    tanh
"""


class Linear(Module):
    """y = x Wᵀ + b, weight (n_out, n_in): PyTorch's nn.Linear. (N, n_in) -> (N, n_out)"""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        self.n_in, self.n_out = n_in, n_out
        self.weight: Any = Slot((n_out, n_in), Role.LINEAR)
        self.bias: Any = Slot((n_out,), Role.VECTOR) if bias else None

    def __call__(self, x: Array) -> Array:
        return self.ops.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        return f"Linear({self.n_in}, {self.n_out}{'' if self.bias is not None else ', bias=False'})"


class Conv1D(Module):
    """y = x W + b, weight (n_in, n_out): GPT-2's transposed Linear. (N, n_in) -> (N, n_out)"""

    def __init__(self, n_in: int, n_out: int) -> None:
        self.n_in, self.n_out = n_in, n_out
        self.weight: Any = Slot((n_in, n_out), Role.CONV1D)
        self.bias: Any = Slot((n_out,), Role.VECTOR)

    def __call__(self, x: Array) -> Array:
        return self.ops.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        return f"Conv1D({self.n_in}, {self.n_out})"


class Convolution(Module):
    """Convolution over the rows of each sequence: PyTorch's nn.Conv1d, stride 1. (N, n_in) -> (N, n_out)

    weight (n_out, n_in, size); a sequence is padded with zeros. The kernel at a row begins `before` rows before it:
    `before` = size - 1 is causal, and (size - 1) // 2 is PyTorch's padding="same".

    A convolution reads only the rows of its step, so an entire sequence must run in one step; otherwise
    `Batch.unfold_rows` raises RequestError.
    """

    def __init__(self, n_in: int, n_out: int, size: int, *, before: int, bias: bool = True) -> None:
        self.n_in, self.n_out, self.size, self.before = n_in, n_out, size, before
        self.weight: Any = Slot((n_out, n_in, size), Role.CONVOLUTION)
        self.bias: Any = Slot((n_out,), Role.VECTOR) if bias else None

    def __call__(self, x: Array, batch: Batch) -> Array:
        return self.ops.linear(self.ops.unfold(x, batch.unfold_rows(self.size, self.before)), self.weight, self.bias)

    def describe(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"Convolution({self.n_in}, {self.n_out}, size={self.size}, before={self.before}{bias})"


class LayerNorm(Module):
    """(x - mean) / √(variance + eps) · weight + bias over the channels. (N, C) -> (N, C)

    Ba et al., 2016, arXiv:1607.06450.
    """

    def __init__(self, n_channels: int, *, eps: float, bias: bool = True) -> None:
        self.n_channels, self.eps = n_channels, eps
        self.weight: Any = Slot((n_channels,), Role.VECTOR)
        self.bias: Any = Slot((n_channels,), Role.VECTOR) if bias else None

    def __call__(self, x: Array) -> Array:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)

    def describe(self) -> str:
        return f"LayerNorm({self.n_channels}, eps={self.eps:g}{'' if self.bias is not None else ', bias=False'})"


class RMSNorm(Module):
    """x / √(mean of squares + eps) · (offset + weight), of each group of n_channels. (N, G·C) -> (N, G·C)

    Zhang and Sennrich, 2019, arXiv:1910.07467. `n_channels` is the width of the residual stream, or head_dim to
    normalise every head. Gemma's checkpoints store weight - 1, so offset is 1.0 there.
    """

    def __init__(self, n_channels: int, *, eps: float, offset: float = 0.0) -> None:
        self.n_channels, self.eps, self.offset = n_channels, eps, offset
        self.weight: Any = Slot((n_channels,), Role.VECTOR)

    def __call__(self, x: Array) -> Array:
        return self.ops.rms_norm(x, self.weight, self.eps, self.offset)

    def describe(self) -> str:
        offset = f", offset={self.offset:g}" if self.offset else ""
        return f"RMSNorm({self.n_channels}, eps={self.eps:g}{offset})"


class Rotary(Module):
    """The angles of rotary position embeddings, for `ops.rotary`. (N,) positions -> (N, r): cosines, then sines

    Su et al., 2021, arXiv:2104.09864. A model computes them once per step and passes them to its layers.

    Args:
        frequencies: (r/2,) radians per position, from the config, or a function that returns them, as for `Constant`.
        scale: a factor of cosines and sines, if the config has one (YaRN, LongRoPE).
    """

    def __init__(self, frequencies: Numbers | Callable[[], Numbers], scale: float = 1.0) -> None:
        constant = Constant(frequencies)
        self.frequencies: Any = constant
        self.scale = scale
        self._n_channels: Callable[[], int] = lambda: 2 * len(constant.values)

    @property
    def n_channels(self) -> int:
        """r, the channels of each head that are rotated."""
        return self._n_channels()

    def __call__(self, positions: NDArray[np.int32]) -> Array:
        return self.ops.angles(positions, self.frequencies, self.scale)

    def describe(self) -> str:
        return f"Rotary({self.n_channels}{'' if self.scale == 1 else f', scale={self.scale:g}'})"


class Embedding(Module):
    """Row first_row + i of weight (n_rows, C) for each id i, times scale. (N,) -> (N, C)

    Args:
        n_rows: the number of rows of the table.
        n_channels: C.
        first_row: the row of id 0: OPT's position table has two unused rows before that of position 0.
        scale: a factor, such as √C in Gemma.
    """

    def __init__(self, n_rows: int, n_channels: int, *, first_row: int = 0, scale: float = 1.0) -> None:
        self.n_rows, self.n_channels, self.first_row, self.scale = n_rows, n_channels, first_row, scale
        self.weight: Any = Slot((n_rows, n_channels), Role.TABLE)

    @property
    def n_ids(self) -> int:
        """The number of ids that have a row: 0 to n_ids - 1."""
        return self.n_rows - self.first_row

    def __call__(self, ids: NDArray[np.int32]) -> Array:
        x = self.ops.embedding(ids, self.weight, self.first_row)
        return x if self.scale == 1 else x * self.scale

    def describe(self) -> str:
        first = f", first_row={self.first_row}" if self.first_row else ""
        scale = "" if self.scale == 1 else f", scale={self.scale:g}"
        return f"Embedding({self.n_rows}, {self.n_channels}{first}{scale})"


class Activation(Module):
    """One of ACTIVATIONS, elementwise. (N, F) -> (N, F)"""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Array) -> Array:
        return self.ops.activation(x, self.name)

    def describe(self) -> str:
        return f"Activation({self.name})"
