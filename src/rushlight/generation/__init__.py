"""Generation: runs sequences through a forward and samples their next tokens. Independent of models and text.

The parts are imported when they are first used: `--help` reads the sampling settings without NumPy.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rushlight.generation.beam import BeamSearch, Hypothesis
    from rushlight.generation.engine import Engine
    from rushlight.generation.runner import Context, Forward
    from rushlight.generation.sampling.logprobs import TokenLogprob
    from rushlight.generation.sampling.params import SamplingParams, SamplingSettings, given, takes_settings
    from rushlight.generation.sampling.sampler import Sampler
    from rushlight.generation.scoring import Perplexity, Scorer, windows
    from rushlight.generation.sequence import FinishReason, Sequence, Token
    from rushlight.generation.speculation.draft_model import Draft, DraftModel

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

_HOMES = {
    "beam": ("BeamSearch", "Hypothesis"),
    "engine": ("Engine",),
    "runner": ("Context", "Forward"),
    "sampling.logprobs": ("TokenLogprob",),
    "sampling.params": ("SamplingParams", "SamplingSettings", "given", "takes_settings"),
    "sampling.sampler": ("Sampler",),
    "scoring": ("Perplexity", "Scorer", "windows"),
    "sequence": ("FinishReason", "Sequence", "Token"),
    "speculation.draft_model": ("Draft", "DraftModel"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
