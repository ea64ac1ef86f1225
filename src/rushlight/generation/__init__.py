"""Generation: runs sequences through a language model in batches and samples their tokens. Knows no text."""

from rushlight.generation.beam import BeamSearch, Hypothesis
from rushlight.generation.engine import Engine, EngineStats
from rushlight.generation.runner import Context, LanguageModel
from rushlight.generation.sampling.logprobs import TokenLogprob
from rushlight.generation.sampling.params import (
    CompletionSettings,
    SamplingParams,
    SamplingSettings,
    given,
    takes_settings,
)
from rushlight.generation.sampling.sampler import Sampler
from rushlight.generation.scoring import Perplexity, Scorer, sliding_windows
from rushlight.generation.sequence import FinishReason, SequenceState, Token

__all__ = [
    "BeamSearch",
    "CompletionSettings",
    "Context",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Hypothesis",
    "LanguageModel",
    "Perplexity",
    "Sampler",
    "SamplingParams",
    "SamplingSettings",
    "Scorer",
    "SequenceState",
    "Token",
    "TokenLogprob",
    "given",
    "sliding_windows",
    "takes_settings",
]
