"""Generation: sequences run through a forward, and the choice of each next token. Knows no model and no text."""

from rushlight.generation.beam import BeamSearch, Hypothesis
from rushlight.generation.context import Context, Forward
from rushlight.generation.draft import Draft, DraftModel
from rushlight.generation.engine import Engine
from rushlight.generation.logprobs import TokenLogprob
from rushlight.generation.params import SamplingParams, SamplingSettings, given, takes_settings
from rushlight.generation.sampler import Sampler
from rushlight.generation.scoring import Perplexity, Scorer, windows
from rushlight.generation.sequence import FinishReason, Sequence, Token

__all__ = [
    "BeamSearch",
    "Context",
    "Draft",
    "DraftModel",
    "Engine",
    "FinishReason",
    "Forward",
    "Hypothesis",
    "Perplexity",
    "Sampler",
    "SamplingParams",
    "SamplingSettings",
    "Scorer",
    "Sequence",
    "Token",
    "TokenLogprob",
    "given",
    "takes_settings",
    "windows",
]
