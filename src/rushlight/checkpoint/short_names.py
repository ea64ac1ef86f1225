"""Short names of well-known models: `smollm2` for HuggingFaceTB/SmolLM2-135M-Instruct.

A family's name alone is its smallest model that chats, or the smallest of all; `family:size` is another one.
"""

from __future__ import annotations

import re

__all__ = ["SHORT_NAMES", "has_form_of_short_name", "short_names", "similar_names"]

SHORT_NAMES = {
    "bloom": "bigscience/bloom-560m",
    "bloom:560m": "bigscience/bloom-560m",
    "bloom:1b7": "bigscience/bloom-1b7",
    "gemma2": "google/gemma-2-2b-it",
    "gemma2:2b": "google/gemma-2-2b-it",
    "gemma3": "google/gemma-3-270m-it",
    "gemma3:270m": "google/gemma-3-270m-it",
    "gemma3:1b": "google/gemma-3-1b-it",
    "gemma3:4b": "google/gemma-3-4b-it",
    "gpt-neo": "EleutherAI/gpt-neo-125m",
    "gpt-neo:125m": "EleutherAI/gpt-neo-125m",
    "gpt-neo:1.3b": "EleutherAI/gpt-neo-1.3B",
    "gpt2": "openai-community/gpt2",
    "gpt2:124m": "openai-community/gpt2",
    "gpt2:medium": "openai-community/gpt2-medium",
    "gpt2:large": "openai-community/gpt2-large",
    "gpt2:xl": "openai-community/gpt2-xl",
    "granite3": "ibm-granite/granite-3.3-2b-instruct",
    "granite3:2b": "ibm-granite/granite-3.3-2b-instruct",
    "granite3:8b": "ibm-granite/granite-3.3-8b-instruct",
    "llama3.2": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2:1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2:3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.1": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral:7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "olmo2": "allenai/OLMo-2-0425-1B-Instruct",
    "olmo2:1b": "allenai/OLMo-2-0425-1B-Instruct",
    "olmo2:7b": "allenai/OLMo-2-1124-7B-Instruct",
    "opt": "facebook/opt-125m",
    "opt:125m": "facebook/opt-125m",
    "opt:350m": "facebook/opt-350m",
    "opt:1.3b": "facebook/opt-1.3b",
    "phi2": "microsoft/phi-2",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
    "phi3:mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4": "microsoft/Phi-4-mini-instruct",
    "phi4:mini": "microsoft/Phi-4-mini-instruct",
    "pythia": "EleutherAI/pythia-160m",
    "pythia:70m": "EleutherAI/pythia-70m",
    "pythia:160m": "EleutherAI/pythia-160m",
    "pythia:410m": "EleutherAI/pythia-410m",
    "pythia:1b": "EleutherAI/pythia-1b",
    "qwen2.5": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5:0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5:1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5:3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5:7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3": "Qwen/Qwen3-0.6B",
    "qwen3:0.6b": "Qwen/Qwen3-0.6B",
    "qwen3:1.7b": "Qwen/Qwen3-1.7B",
    "qwen3:4b": "Qwen/Qwen3-4B",
    "qwen3:8b": "Qwen/Qwen3-8B",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2:135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2:360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2:1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "smollm3:3b": "HuggingFaceTB/SmolLM3-3B",
    "stablelm2": "stabilityai/stablelm-2-zephyr-1_6b",
    "stablelm2:1.6b": "stabilityai/stablelm-2-zephyr-1_6b",
    "starcoder2": "bigcode/starcoder2-3b",
    "starcoder2:3b": "bigcode/starcoder2-3b",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tinyllama:1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tinystories": "roneneldan/TinyStories-33M",
    "tinystories:1m": "roneneldan/TinyStories-1M",
    "tinystories:33m": "roneneldan/TinyStories-33M",
}
"""Short name -> hub id."""

_TAGGED = re.compile(r"[A-Za-z0-9][\w.-]*:[\w.-]+", re.ASCII)


def has_form_of_short_name(name: str) -> bool:
    """Whether a name is `family:size`, which no hub id can be."""
    return _TAGGED.fullmatch(name) is not None


def similar_names(name: str) -> list[str]:
    """The short names that a misspelt one may stand for, the most similar first."""
    from difflib import get_close_matches

    family = name.lower().partition(":")[0]
    sizes = [known for known in SHORT_NAMES if known.startswith(f"{family}:")]
    return get_close_matches(name.lower(), SHORT_NAMES, n=3, cutoff=0.75) or sizes[:3]


def short_names(repo_id: str) -> list[str]:
    """The short names of a model on the hub, the shortest first."""
    return sorted((name for name, full in SHORT_NAMES.items() if full == repo_id), key=len)
