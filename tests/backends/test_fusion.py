"""Deferred operations: which ones are fused, and which ones need a value."""

import numpy as np
import pytest

from rushlight.backends.fusion import Deferred, Fused, Norm, value_of


class Computer:
    """Computes with NumPy, and records each operation."""

    def __init__(self):
        self.computed = []

    def defer(self, fused):
        return Deferred(fused, self.compute)

    def compute(self, fused):
        self.computed.append(fused)
        y = fused.x if fused.weight is None else fused.x @ fused.weight.T
        y = y if fused.bias is None else y + fused.bias
        y = y if fused.activation is None else np.maximum(y, 0)
        y = y if fused.factor is None else y * fused.factor
        y = y if fused.gated is None else y * np.asarray(fused.gated)
        return y if fused.residual is None else y + np.asarray(fused.residual)


@pytest.fixture
def computer():
    return Computer()


X, WEIGHT, BIAS = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3), np.arange(4.0)
NORM = Norm(np.ones(3), np.zeros(3), 1e-5)


def test_a_value_is_computed_once_and_when_it_is_needed(computer):
    deferred = computer.defer(Fused(X, weight=WEIGHT))
    assert deferred.shape == (2, 4)
    assert not computer.computed
    assert deferred.value is deferred.value
    assert value_of(deferred) is deferred.value
    assert len(computer.computed) == 1
    assert value_of(X) is X


def test_a_norm_can_be_fused_into_a_product_until_its_value_is_read(computer):
    norm = computer.defer(Fused(X, NORM))
    assert norm.shape == (2, 3)
    assert norm.normed() == Fused(X, NORM)
    assert norm.product() is None
    assert norm.value is X
    assert norm.normed() is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_sum_with_an_array_is_part_of_the_product(computer, order):
    residual = np.full((2, 4), 0.5)
    parts = [residual.view(Unwilling), computer.defer(Fused(X, weight=WEIGHT, bias=BIAS))][::order]
    total = parts[0] + parts[1]
    assert np.array_equal(total.value, X @ WEIGHT.T + BIAS + residual)
    assert len(computer.computed) == 1
    assert total.product() is None


class Unwilling(np.ndarray):
    """Defers sums with unknown types to the other operand, as PyTorch tensors do."""

    __array_ufunc__ = None

    def __add__(self, other):
        return NotImplemented


def test_of_two_products_one_takes_the_other_as_its_residual(computer):
    first, second = computer.defer(Fused(X, weight=WEIGHT)), computer.defer(Fused(X + 1, weight=WEIGHT))
    total = first + second
    assert np.array_equal(total.value, X @ WEIGHT.T + (X + 1) @ WEIGHT.T)
    assert [fused.residual is None for fused in computer.computed] == [True, False]


def test_a_residual_stream_that_was_read_is_fused_into_the_next_product(computer):
    """As between the halves of a transformer block."""
    stream = computer.defer(Fused(X, weight=WEIGHT))
    seen = stream.value
    total = stream + computer.defer(Fused(X, weight=WEIGHT, bias=BIAS))
    assert total.value is not seen
    assert computer.computed[1].residual is seen
    assert np.array_equal(total.value, 2 * (X @ WEIGHT.T) + BIAS)


def test_other_sums_and_products_need_the_value(computer):
    norm, product = computer.defer(Fused(X, NORM)), computer.defer(Fused(X, weight=WEIGHT))
    assert np.array_equal(norm + np.ones((2, 3)), X + 1)
    assert np.array_equal(product + np.ones(4), X @ WEIGHT.T + 1)  # another shape
    assert np.array_equal(product * product, (X @ WEIGHT.T) ** 2)
    assert np.array_equal(computer.defer(Fused(X, NORM)) * np.full((2, 3), 2.0), 2 * X)
    assert len(computer.computed) == 3


def test_a_number_is_a_factor_of_the_product(computer):
    """Before the residual, and after the activation."""
    product = computer.defer(Fused(X, weight=WEIGHT, bias=BIAS))
    total = np.ones((2, 4)).view(Unwilling) + 0.5 * product * 3
    assert np.array_equal(total.value, 1 + 1.5 * (X @ WEIGHT.T + BIAS))
    assert len(computer.computed) == 1
    assert product.activated("relu").product().activation == "relu"
    assert (product * 2).activated("relu") is None
    assert (product.activated("relu") * 2).product().factor == 2
    assert product.activated("relu").activated("relu") is None
    assert np.array_equal(computer.defer(Fused(X, NORM)) * 2.0, 2 * X)


@pytest.mark.parametrize("order", [1, -1])
def test_a_gate_is_part_of_its_product(computer, order):
    """As in a gated MLP: act(gate(x)) * up(x), in either order."""
    gate = computer.defer(Fused(X - 2, weight=WEIGHT)).activated("relu")
    up = computer.defer(Fused(X, weight=WEIGHT, bias=BIAS))
    product = [gate, up][::order]
    gated = product[0] * product[1] * 0.5
    assert gated.activated("relu") is None
    total = np.ones((2, 4)).view(Unwilling) + gated
    assert np.array_equal(total.value, 1 + 0.5 * np.maximum((X - 2) @ WEIGHT.T, 0) * (X @ WEIGHT.T + BIAS))
    assert len(computer.computed) == 2


def test_of_several_arrays_one_is_gated_by_the_product(computer):
    product = computer.defer(Fused(X, weight=WEIGHT))
    gated = product * np.full((2, 4), 2.0) * np.full((2, 4), 3.0)
    assert np.array_equal(gated, 6 * (X @ WEIGHT.T))
    assert len(computer.computed) == 1


def test_a_square_is_computed_from_one_value(computer):
    product = computer.defer(Fused(X, weight=WEIGHT))
    assert np.array_equal(product * product, (X @ WEIGHT.T) ** 2)
    assert len(computer.computed) == 1
