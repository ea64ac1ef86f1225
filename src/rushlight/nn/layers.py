"""The layers that models are made of, each under the parameter names that PyTorch gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rushlight.backends.protocol import Role
from rushlight.nn.module import Module, Slot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.batch import Batch
    from rushlight.backends.protocol import Array

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
    """Each row's neighbours in its own sequence, times the weight: PyTorch's nn.Conv1d. (N, n_in) -> (N, n_out)

    weight (n_out, n_in, size), stride 1. Beyond the sequence's ends stand zeros. With `before` = size - 1 a row sees
    itself and what stands before it; PyTorch's padding="same" is `before` = (size - 1) // 2.

    A convolution sees the rows of its own step alone, so a sequence runs in one step; `Batch.unfold_rows` raises
    otherwise.
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
    """(x - mean) / √(variance + eps) · weight + bias over the channels. (N, C) -> (N, C)"""

    def __init__(self, n_channels: int, *, eps: float) -> None:
        self.n_channels, self.eps = n_channels, eps
        self.weight: Any = Slot((n_channels,), Role.VECTOR)
        self.bias: Any = Slot((n_channels,), Role.VECTOR)

    def __call__(self, x: Array) -> Array:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)

    def describe(self) -> str:
        return f"LayerNorm({self.n_channels}, eps={self.eps})"


class Embedding(Module):
    """Row i of weight (n_rows, C) for each id i. (N,) -> (N, C)"""

    def __init__(self, n_rows: int, n_channels: int) -> None:
        self.n_rows, self.n_channels = n_rows, n_channels
        self.weight: Any = Slot((n_rows, n_channels), Role.TABLE)

    def __call__(self, ids: NDArray[np.int32]) -> Array:
        return self.ops.embedding(ids, self.weight)

    def describe(self) -> str:
        return f"Embedding({self.n_rows}, {self.n_channels})"


class Activation(Module):
    """One of ACTIVATIONS, element by element. (N, F) -> (N, F)"""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Array) -> Array:
        return self.ops.activation(x, self.name)

    def describe(self) -> str:
        return f"Activation({self.name})"
