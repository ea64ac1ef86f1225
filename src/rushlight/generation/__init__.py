"""Generation: runs sequences through a language model in batches and samples their tokens. Independent of text.

Each name is imported on first use, so that `--help` can read the sampling settings without NumPy.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rushlight.generation.beam import BeamSearch, Hypothesis
    from rushlight.generation.engine import Engine, EngineStats
    from rushlight.generation.runner import Context, LanguageModel
    from rushlight.generation.sampling.logprobs import TokenLogprob
    from rushlight.generation.sampling.params import (
        CompletionSettings,
        SamplingParams,
        SamplingSettings,
        takes_settings,
        without_none,
    )
    from rushlight.generation.sampling.sampler import Sampler
    from rushlight.generation.scoring import Perplexity, Scorer, sliding_windows
    from rushlight.generation.sequence import FinishReason, SampledToken, SequenceState

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
    "SampledToken",
    "Sampler",
    "SamplingParams",
    "SamplingSettings",
    "Scorer",
    "SequenceState",
    "TokenLogprob",
    "sliding_windows",
    "takes_settings",
    "without_none",
]

_LAZY_IMPORTS = {
    "beam": ("BeamSearch", "Hypothesis"),
    "engine": ("Engine", "EngineStats"),
    "runner": ("Context", "LanguageModel"),
    "sampling.logprobs": ("TokenLogprob",),
    "sampling.params": ("CompletionSettings", "SamplingParams", "SamplingSettings", "without_none", "takes_settings"),
    "sampling.sampler": ("Sampler",),
    "scoring": ("Perplexity", "Scorer", "sliding_windows"),
    "sequence": ("FinishReason", "SequenceState", "SampledToken"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _LAZY_IMPORTS.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
