"""The layer library: modules whose attribute path is the tensor's name, and their binding to a checkpoint."""

from rushlight.nn.bind import NameRules, bind
from rushlight.nn.layers import ACTIVATIONS, Activation, Conv1D, Embedding, LayerNorm, Linear
from rushlight.nn.module import Module, ModuleList, Slot

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv1D",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "NameRules",
    "Slot",
    "bind",
]
