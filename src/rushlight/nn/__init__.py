"""The layer library: modules whose attribute path is the tensor's name, and their binding to a checkpoint."""

from rushlight.nn.bind import Diagnosis, NameRules, Problem, bind, diagnose
from rushlight.nn.layers import ACTIVATIONS, Activation, Conv1D, Convolution, Embedding, LayerNorm, Linear
from rushlight.nn.module import Module, ModuleDict, ModuleList, Slot, to_write
from rushlight.nn.tap import tapped

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv1D",
    "Convolution",
    "Diagnosis",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NameRules",
    "Problem",
    "Slot",
    "bind",
    "diagnose",
    "tapped",
    "to_write",
]
