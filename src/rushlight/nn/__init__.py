"""The layer library: modules whose attribute path is the tensor's name, and their binding to a checkpoint."""

from rushlight.nn.bind import NameRules, bind
from rushlight.nn.layers import ACTIVATIONS, Activation, Conv1D, Convolution, Embedding, LayerNorm, Linear
from rushlight.nn.module import Module, ModuleList, Slot
from rushlight.nn.tap import tapped

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv1D",
    "Convolution",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "NameRules",
    "Slot",
    "bind",
    "tapped",
]
