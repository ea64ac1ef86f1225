"""Generation: runs sequences through a forward and samples their next tokens. Independent of models and text.

The parts are imported when they are first used: `--help` reads the sampling settings without NumPy.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rushlight.generation.beam import BeamSearch, Hypothesis
    from rushlight.generation.engine import Engine
    from rushlight.generation.runner import Context, LanguageModel
    from rushlight.generation.sampling.logprobs import TokenLogprob
    from rushlight.generation.sampling.params import SamplingParams, SamplingSettings, given, takes_settings
    from rushlight.generation.sampling.sampler import Sampler
    from rushlight.generation.scoring import Perplexity, Scorer, sliding_windows
    from rushlight.generation.sequence import FinishReason, SequenceState, Token
    from rushlight.generation.speculation.draft_model import Draft

__all__ = [
    "BeamSearch",
    "Context",
    "Draft",
    "Engine",
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

_HOMES = {
    "beam": ("BeamSearch", "Hypothesis"),
    "engine": ("Engine",),
    "runner": ("Context", "LanguageModel"),
    "sampling.logprobs": ("TokenLogprob",),
    "sampling.params": ("SamplingParams", "SamplingSettings", "given", "takes_settings"),
    "sampling.sampler": ("Sampler",),
    "scoring": ("Perplexity", "Scorer", "sliding_windows"),
    "sequence": ("FinishReason", "SequenceState", "Token"),
    "speculation.draft_model": ("Draft",),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
