"""The built-in architectures by `model_type`, each imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rushlight.models.architecture import Architecture
    from rushlight.nn import Tensor

__all__ = ["ARCHITECTURES", "recognise"]

MODULES = {
    "bloom": "bloom",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3_text",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt_bigcode",
    "gpt_neo": "gpt_neo",
    "gpt_neox": "gpt_neox",
    "gptj": "gptj",
    "granite": "granite",
    "llama": "llama",
    "mistral": "mistral",
    "olmo2": "olmo2",
    "opt": "opt",
    "phi": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""`model_type` in config.json -> the file in this folder that defines `ARCHITECTURE`, the class of the model."""


class _Registry(Mapping[str, "Architecture"]):
    def __getitem__(self, model_type: str) -> Architecture:
        architecture: Architecture = import_module(f"rushlight.models.{MODULES[model_type]}").ARCHITECTURE
        return architecture

    def __contains__(self, model_type: object) -> bool:
        return isinstance(model_type, str) and model_type in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


ARCHITECTURES: Mapping[str, Architecture] = _Registry()
"""The built-in architectures by `model_type`; looking one up imports its file."""


def recognise(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of a checkpoint whose config.json is missing or has no model_type; None if it is unknown.

    Only GPT-2, whose published checkpoints are bare files, is recognised by its tensors.
    """
    gpt2 = ARCHITECTURES["gpt2"]
    return gpt2 if gpt2.recognises(tensors) else None
