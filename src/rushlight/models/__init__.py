"""Architectures and their configs: one file per architecture, the registry, and the base classes for ports."""

from rushlight.models import field
from rushlight.models.architecture import GPT2_VOCAB_SIZE, OTHER_HEADS, Architecture, Config, Origin, PretrainedModel
from rushlight.models.field import ACTIVATION_NAMES
from rushlight.models.ported import load_port
from rushlight.models.registry import ARCHITECTURES, recognise
from rushlight.models.rope import Rope, read_rope
from rushlight.models.schema import Fields
from rushlight.models.text_config import Heads, TextConfig

__all__ = [
    "ACTIVATION_NAMES",
    "ARCHITECTURES",
    "GPT2_VOCAB_SIZE",
    "OTHER_HEADS",
    "Architecture",
    "Config",
    "Fields",
    "Heads",
    "Origin",
    "PretrainedModel",
    "Rope",
    "TextConfig",
    "field",
    "load_port",
    "read_rope",
    "recognise",
]
