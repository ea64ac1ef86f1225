"""A port of tales, written by `rushlight port`.

It has a slot for every tensor; complete it where it says TO WRITE.

    rushlight check SOURCE --port FILE
    rushlight generate SOURCE --port FILE -p TEXT
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rushlight.models import Fields, PretrainedModel
from rushlight.nn import (
    Convolution,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    ModuleDict,
    ModuleList,
    NameRules,
    RMSNorm,
    Role,
    Slot,
    to_write,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes of the checkpoint, under their keys in config.json where it has one."""

    hidden_size: int = 32
    vocab_size: int = 50
    num_hidden_layers: int = 3

    @classmethod
    def from_json(cls, values, *, file=None):
        """Reads a config.json and ignores its other keys."""
        fields = Fields(values, file)
        config = cls(
            hidden_size=fields.size("hidden_size", cls.hidden_size),
            vocab_size=fields.size("vocab_size", cls.vocab_size),
            num_hidden_layers=fields.size("num_hidden_layers", cls.num_hidden_layers),
        )
        fields.finish(benign=values)
        return config

    @classmethod
    def from_tensors(cls, tensors, *, file=None):
        """The sizes of the checkpoint that this file was written for."""
        return cls()


class Layer(Module):
    """layers.N: to be completed."""

    def __init__(self, config):
        self.gate = ModuleDict(
            {
                "0": Linear(config.hidden_size, 4 * config.hidden_size),
                "2": Linear(64, config.hidden_size, bias=False),
            }
        )
        self.norm = LayerNorm(config.hidden_size, eps=1e-5)

    def __call__(self, *inputs):
        # TO WRITE: replace this line with what the module computes.
        raise to_write(self)


class Mine(PretrainedModel):
    """A port, to be completed."""

    config_type: ClassVar = Config
    rules: ClassVar = NameRules()

    def __init__(self, config):
        # Inferred: centred, as with padding="same"; a causal convolution has before = size - 1.
        self.conv = Convolution(config.hidden_size, config.hidden_size, 3, before=1)
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        # Inferred: an RMSNorm; a LayerNorm with bias=False has the same tensors.
        self.final_norm = RMSNorm(config.hidden_size, eps=1e-5)
        self.head = Linear(config.hidden_size, 10)
        self.layers = ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.position = Slot((64, config.hidden_size), Role.TABLE)
        self.scale = Slot((), Role.VECTOR)

    def __call__(self, *inputs):
        # TO WRITE: replace this line with what the module computes.
        raise to_write(self)


ARCHITECTURE = Mine
