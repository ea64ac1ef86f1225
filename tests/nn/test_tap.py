"""Tapped trees: every output passes through the hook, and the original tree stays unchanged."""

import numpy as np

from rushlight.nn import Activation, Module, ModuleList, tapped


class Add(Module):
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return x + self.n


class Toy(Module):
    def __init__(self):
        self.first = Add(1)
        self.h = ModuleList([Add(10), Add(100)])

    def __call__(self, x):
        x = self.first(x)
        for block in self.h:
            x = block(x)
        return x


def test_the_hook_sees_every_output_in_the_order_of_the_forward():
    seen = []
    toy = tapped(Toy(), lambda path, output: seen.append((path, output)) or output)
    assert toy(0) == 111
    assert seen == [("first", 1), ("h.0", 11), ("h.1", 111), ("", 111)]


def test_the_caller_gets_the_return_value_of_the_hook():
    assert tapped(Toy(), lambda path, output: 5 if path == "h.0" else output)(0) == 105


def test_the_original_tree_is_unchanged():
    toy = Toy()
    before = repr(toy), [*toy.h]
    twin = tapped(toy, lambda path, output: 0)
    assert (toy(0), twin(0)) == (111, 0)
    assert (repr(toy), [*toy.h]) == before
    assert repr(twin) == repr(toy)
    assert type(toy.first) is Add
    assert isinstance(twin.first, Add)


def test_hooks_on_hooks_run_in_order():
    first = tapped(Toy(), lambda path, output: output * 2 if path == "first" else output)
    seen = {}
    second = tapped(first, seen.setdefault)
    assert second(0) == 112
    assert (seen["first"], first(0)) == (2, 112)


def test_settings_and_weights_are_shared():
    layer = Activation("relu")
    layer.ops = weights = np.zeros(3)
    assert tapped(layer, lambda path, output: output).ops is weights
