"""The layer library: modules whose attribute paths are tensor names, and their binding to a checkpoint.

A model file imports only from here and from `rushlight.models`.
"""

from rushlight.backends.batch import Batch, KVShape
from rushlight.backends.protocol import Array, Backend, Role, Tensor
from rushlight.nn.bind import Diagnosis, NameRules, Problem, bind, diagnose
from rushlight.nn.layers import (
    ACTIVATIONS,
    Activation,
    Conv1D,
    Convolution,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    Rotary,
)
from rushlight.nn.module import Constant, Module, ModuleDict, ModuleList, Slot, to_write
from rushlight.nn.tap import tapped

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Array",
    "Backend",
    "Batch",
    "Constant",
    "Conv1D",
    "Convolution",
    "Diagnosis",
    "Embedding",
    "KVShape",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NameRules",
    "Problem",
    "RMSNorm",
    "Role",
    "Rotary",
    "Slot",
    "Tensor",
    "bind",
    "diagnose",
    "tapped",
    "to_write",
]
