"""Each layer on the reference backend against its formula in float64."""

import numpy as np
import pytest
from nn_helpers import bound

from rushlight.errors import PortError
from rushlight.nn import Constant, Embedding, LayerNorm, Linear, Module, NameRules, RMSNorm, Role, Rotary, bind

N, C = 5, 12


def rows(width=C, seed=0):
    return np.random.default_rng(seed).normal(size=(N, width))


def error(found, expected):
    return np.abs(found - expected).max()


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    norm, x = bound(LayerNorm(C, eps=1e-3, bias=bias)), rows()
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3) * norm.values("weight")
    assert error(norm(x), expected + (norm.values("bias") if bias else 0)) < 1e-12


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [C, 4])
def test_rms_norm_of_rows_and_of_heads(offset, size):
    norm, x = bound(RMSNorm(size, eps=1e-3, offset=offset)), rows()
    groups = x.reshape(N, -1, size)
    expected = (
        groups / np.sqrt(np.square(groups).mean(2, keepdims=True) + 1e-3) * (offset + np.float64(norm.values("weight")))
    )
    assert error(norm(x), expected.reshape(N, C)) < 1e-12


def test_rotary_gives_cosines_and_sines_of_the_angles():
    frequencies = [1.0, 0.25, 0.01]
    rotary = bound(Rotary(frequencies, scale=1.5))
    positions = np.array([0, 1, 7, 300], np.int32)
    angles = np.outer(positions, np.float32(frequencies))
    expected = 1.5 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert error(rotary(positions), expected) < 1e-6
    assert np.array_equal(rotary.values("frequencies"), np.float32(frequencies))


def test_embedding_from_its_first_row_and_scaled():
    table = rows(seed=1)
    embedding = bound(Embedding(N, C, first_row=2, scale=3.0), weight=table)
    assert error(embedding(np.array([0, 2], np.int32)), 3 * np.float64(np.float32(table[[2, 4]]))) < 1e-12


class Slopes(Module):
    def __init__(self, numbers):
        self.slopes = Constant(numbers)


@pytest.mark.parametrize("numbers", [(0.5, 0.1), np.array([0.5, 0.1]), [0.5, 0.1], lambda: (0.5, 0.1)])
def test_a_constant_is_loaded_in_float32_and_is_not_a_tensor_of_the_checkpoint(numbers):
    module = Slopes(numbers)
    assert [*module.named_slots()] == []
    assert [path for path, _ in module.named_constants()] == ["slopes"]
    bound(module, "f32")
    assert [*module.named_constants()] == []
    assert module.values("slopes").dtype == np.float32
    assert np.array_equal(module.values("slopes"), np.float32([0.5, 0.1]))


def test_a_constant_is_loaded_under_its_role():
    loaded = []

    class Backend:
        def load_weight(self, tensor, role):
            raw = np.empty(8, np.uint8)
            tensor.read_into(raw, 0)
            loaded.append((tensor.name, tensor.dtype, tensor.shape, role, raw.view(np.float32).tolist()))

        def finish_loading(self):
            pass

    bind(Slopes([0.5, 0.25]), {}, Backend(), rules=NameRules(), tie=False, title="test")
    assert loaded == [("slopes", "F32", (2,), Role.CONSTANT, [0.5, 0.25])]


def test_values_have_the_shape_of_their_tensor_and_are_a_copy():
    layer = bound(Embedding(N, C), "f32")
    values = layer.values("weight")
    assert values.shape == (N, C)
    values[:] = 0
    assert layer.values("weight").any()


@pytest.mark.parametrize(
    ("layer", "described"),
    [
        (LayerNorm(4, eps=1e-5, bias=False), "LayerNorm(4, eps=1e-05, bias=False)"),
        (RMSNorm(4, eps=1e-6), "RMSNorm(4, eps=1e-06)"),
        (RMSNorm(4, eps=1e-6, offset=1.0), "RMSNorm(4, eps=1e-06, offset=1)"),
        (Rotary([1.0, 0.5]), "Rotary(4)"),
        (Rotary([1.0, 0.5], scale=1.25), "Rotary(4, scale=1.25)"),
        (Embedding(5, 4, first_row=2, scale=2.0), "Embedding(5, 4, first_row=2, scale=2)"),
    ],
)
def test_repr_of_a_layer_shows_non_default_settings(layer, described):
    assert repr(layer) == described


def test_values_of_an_attribute_that_is_not_loaded_are_an_error():
    with pytest.raises(PortError, match=r"LayerNorm.bias has no values \(expected a loaded parameter, found None\)"):
        LayerNorm(4, eps=1e-5, bias=False).values("bias")
    with pytest.raises(PortError, match=r"Linear.weight has no values .*found one that is not loaded yet"):
        Linear(4, 4).values("weight")
