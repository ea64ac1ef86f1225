import numpy as np

from rushlight.backends.protocol import Role
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.nn import Conv1D, Embedding, LayerNorm, Linear, Module, ModuleList, Slot


class Toy(Module):
    def __init__(self):
        self.wte = Embedding(10, 4)
        self.h = ModuleList([Conv1D(4, 8), Linear(8, 4, bias=False)])
        self.ln_f = LayerNorm(4, eps=1e-5)
        self.scale = 0.5


def test_attribute_paths_are_tensor_names():
    slots = dict(Toy().named_slots())
    assert slots == {
        "wte.weight": Slot((10, 4), Role.TABLE),
        "h.0.weight": Slot((4, 8), Role.CONV1D),
        "h.0.bias": Slot((8,), Role.VECTOR),
        "h.1.weight": Slot((4, 8), Role.LINEAR),
        "ln_f.weight": Slot((4,), Role.VECTOR),
        "ln_f.bias": Slot((4,), Role.VECTOR),
    }


def test_modules_are_named_parents_first():
    assert [path for path, _ in Toy().named_modules()] == ["", "wte", "h", "h.0", "h.1", "ln_f"]


def test_a_module_list_is_a_sequence():
    blocks = Toy().h
    assert len(blocks) == 2
    assert [*blocks] == [blocks[0], blocks[1]]


def test_repr_of_a_tree_is_like_pytorchs():
    assert repr(Toy()).splitlines() == [
        "Toy",
        "  (wte): Embedding(10, 4)",
        "  (h): ModuleList",
        "    (0): Conv1D(4, 8)",
        "    (1): Linear(8, 4, bias=False)",
        "  (ln_f): LayerNorm(4, eps=1e-05)",
    ]


def test_building_a_model_does_not_allocate(monkeypatch):
    for name in ("empty", "zeros", "ones", "full"):
        monkeypatch.setattr(np, name, lambda *args, **kwargs: (_ for _ in ()).throw(MemoryError))
    xl = GPT2(GPT2Config(vocab_size=50257, n_positions=1024, n_embd=1600, n_layer=48, n_head=25, n_inner=6400))
    assert sum(slot.n_elements for name, slot in xl.named_slots() if name != "lm_head.weight") == 1_557_611_200
