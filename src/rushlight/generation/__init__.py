"""Generation: a sequence run through a forward, and the choice of each next token. Knows no model and no text."""

from rushlight.generation.context import Context, Forward
from rushlight.generation.decode import FinishReason, Token, decode
from rushlight.generation.params import SamplingParams, SamplingSettings
from rushlight.generation.sampler import Sampler

__all__ = [
    "Context",
    "FinishReason",
    "Forward",
    "Sampler",
    "SamplingParams",
    "SamplingSettings",
    "Token",
    "decode",
]
