"""The built-in model types with their well-known checkpoints, for `rushlight models` and docs/models.md.

Facts for people, which no code depends on: the registry names the files that compute.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CATALOGUE", "ModelType", "Published"]


class Published(NamedTuple):
    """A checkpoint on the hub.

    Attributes:
        repo_id: "owner/name".
        size: its parameters, such as "135M" or "1.7B".
        context: the most positions of a sequence.
        is_gated: whether the hub asks to accept a licence first.
    """

    repo_id: str
    size: str
    context: int
    is_gated: bool = False


class ModelType(NamedTuple):
    """A built-in architecture.

    Attributes:
        model_type: its key in config.json and in the registry.
        title: its name, and what else has this type.
        special: what distinguishes its arithmetic, in one phrase.
        published: well-known checkpoints, the smallest first.
    """

    model_type: str
    title: str
    special: str
    published: tuple[Published, ...]


CATALOGUE = (
    ModelType(
        "llama",
        "Llama, SmolLM2, TinyLlama",
        "RMS norm, rotary positions, grouped key/value heads, gated MLP",
        (
            Published("HuggingFaceTB/SmolLM2-135M-Instruct", "135M", 8192),
            Published("HuggingFaceTB/SmolLM2-360M-Instruct", "362M", 8192),
            Published("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "1.1B", 2048),
            Published("meta-llama/Llama-3.2-1B-Instruct", "1.2B", 131072, is_gated=True),
            Published("HuggingFaceTB/SmolLM2-1.7B-Instruct", "1.7B", 8192),
            Published("meta-llama/Llama-3.2-3B-Instruct", "3.2B", 131072, is_gated=True),
            Published("meta-llama/Llama-3.1-8B-Instruct", "8.0B", 131072, is_gated=True),
        ),
    ),
    ModelType(
        "mistral",
        "Mistral 7B",
        "a Llama with sliding-window attention in its first version",
        (Published("mistralai/Mistral-7B-Instruct-v0.3", "7.2B", 32768),),
    ),
    ModelType(
        "qwen2",
        "Qwen 2 and 2.5",
        "a Llama with biases on queries, keys and values",
        (
            Published("Qwen/Qwen2.5-0.5B-Instruct", "494M", 32768),
            Published("Qwen/Qwen2.5-1.5B-Instruct", "1.5B", 32768),
            Published("Qwen/Qwen2.5-3B-Instruct", "3.1B", 32768),
            Published("Qwen/Qwen2.5-7B-Instruct", "7.6B", 32768),
        ),
    ),
    ModelType(
        "qwen3",
        "Qwen 3",
        "a Llama with RMS norm on each query and key head; answers may begin with reasoning",
        (
            Published("Qwen/Qwen3-0.6B", "596M", 40960),
            Published("Qwen/Qwen3-1.7B", "1.7B", 40960),
            Published("Qwen/Qwen3-4B", "4.0B", 40960),
            Published("Qwen/Qwen3-8B", "8.2B", 40960),
        ),
    ),
    ModelType(
        "smollm3",
        "SmolLM3",
        "a Llama without positions in every fourth layer",
        (Published("HuggingFaceTB/SmolLM3-3B", "3.1B", 65536),),
    ),
    ModelType(
        "olmo2",
        "OLMo 2",
        "norms after attention and MLP instead of before; RMS norm over all queries and keys",
        (
            Published("allenai/OLMo-2-0425-1B-Instruct", "1.5B", 4096),
            Published("allenai/OLMo-2-1124-7B-Instruct", "7.3B", 4096),
        ),
    ),
    ModelType(
        "granite",
        "Granite 3",
        "a Llama with multipliers on embeddings, residuals, scores and logits",
        (
            Published("ibm-granite/granite-3.3-2b-instruct", "2.5B", 131072),
            Published("ibm-granite/granite-3.3-8b-instruct", "8.2B", 131072),
        ),
    ),
    ModelType(
        "phi3",
        "Phi-3, Phi-3.5, Phi-4",
        "a Llama with fused projections and longrope scaling",
        (
            Published("microsoft/Phi-3-mini-4k-instruct", "3.8B", 4096),
            Published("microsoft/Phi-3-mini-128k-instruct", "3.8B", 131072),
            Published("microsoft/Phi-4-mini-instruct", "3.8B", 131072),
        ),
    ),
    ModelType(
        "stablelm",
        "StableLM 2, StableLM 3B",
        "layer norm, and rotary positions on a quarter of each head",
        (
            Published("stabilityai/stablelm-2-zephyr-1_6b", "1.6B", 4096),
            Published("stabilityai/stablelm-3b-4e1t", "2.8B", 4096),
        ),
    ),
    ModelType(
        "starcoder2",
        "StarCoder 2",
        "layer norm and biases, a plain MLP, sliding-window attention; writes code",
        (
            Published("bigcode/starcoder2-3b", "3.0B", 16384),
            Published("bigcode/starcoder2-7b", "7.2B", 16384),
        ),
    ),
    ModelType(
        "gemma",
        "Gemma",
        "scaled embeddings, RMS norm by 1 + weight, GELU in the gated MLP",
        (
            Published("google/gemma-2b-it", "2.5B", 8192, is_gated=True),
            Published("google/gemma-7b-it", "8.5B", 8192, is_gated=True),
        ),
    ),
    ModelType(
        "gemma2",
        "Gemma 2",
        "soft caps on scores and logits, windows in alternate layers, norms before and after",
        (
            Published("google/gemma-2-2b-it", "2.6B", 8192, is_gated=True),
            Published("google/gemma-2-9b-it", "9.2B", 8192, is_gated=True),
        ),
    ),
    ModelType(
        "gemma3_text",
        "Gemma 3",
        "windows in five of six layers, with rotary frequencies of their own",
        (
            Published("google/gemma-3-270m-it", "268M", 32768, is_gated=True),
            Published("google/gemma-3-1b-it", "1.0B", 32768, is_gated=True),
        ),
    ),
    ModelType(
        "gemma3",
        "Gemma 3 with vision",
        "the gemma3_text inside it; the vision part is left out",
        (Published("google/gemma-3-4b-it", "4.3B", 131072, is_gated=True),),
    ),
    ModelType(
        "phi",
        "Phi-1.5, Phi-2",
        "attention and MLP side by side after one norm",
        (
            Published("microsoft/phi-1_5", "1.4B", 2048),
            Published("microsoft/phi-2", "2.8B", 2048),
        ),
    ),
    ModelType(
        "gpt_neox",
        "GPT-NeoX, Pythia",
        "attention and MLP side by side, rotary positions on a quarter of each head",
        (
            Published("EleutherAI/pythia-70m", "70M", 2048),
            Published("EleutherAI/pythia-160m", "162M", 2048),
            Published("EleutherAI/pythia-410m", "405M", 2048),
            Published("EleutherAI/pythia-1b", "1.0B", 2048),
        ),
    ),
    ModelType(
        "gpt_neo",
        "GPT-Neo, TinyStories",
        "a GPT-2 with local attention in alternate layers and unscaled scores",
        (
            Published("roneneldan/TinyStories-1M", "3.7M", 2048),
            Published("roneneldan/TinyStories-33M", "69M", 2048),
            Published("EleutherAI/gpt-neo-125m", "125M", 2048),
            Published("EleutherAI/gpt-neo-1.3B", "1.3B", 2048),
        ),
    ),
    ModelType(
        "gptj",
        "GPT-J",
        "rotary positions in adjacent pairs, attention and MLP side by side",
        (Published("EleutherAI/gpt-j-6b", "6.1B", 2048),),
    ),
    ModelType(
        "gpt_bigcode",
        "StarCoder, SantaCoder",
        "a GPT-2 whose heads share one head of keys and values; writes code",
        (
            Published("bigcode/tiny_starcoder_py", "164M", 8192),
            Published("bigcode/gpt_bigcode-santacoder", "1.1B", 2048),
        ),
    ),
    ModelType(
        "opt",
        "OPT, Galactica",
        "a GPT-2 with ReLU; the 350M has its norms after each part",
        (
            Published("facebook/opt-125m", "125M", 2048),
            Published("facebook/opt-350m", "331M", 2048),
            Published("facebook/opt-1.3b", "1.3B", 2048),
        ),
    ),
    ModelType(
        "bloom",
        "BLOOM, BLOOMZ",
        "ALiBi: scores that fall with distance instead of positions",
        (
            Published("bigscience/bloom-560m", "559M", 2048),
            Published("bigscience/bloom-1b7", "1.7B", 2048),
        ),
    ),
    ModelType(
        "gpt2",
        "GPT-2, DistilGPT-2, DialoGPT, Cerebras-GPT",
        "learned positions, layer norm, GELU; recognised without a config.json",
        (
            Published("distilbert/distilgpt2", "82M", 1024),
            Published("openai-community/gpt2", "124M", 1024),
            Published("openai-community/gpt2-medium", "355M", 1024),
            Published("openai-community/gpt2-large", "774M", 1024),
            Published("openai-community/gpt2-xl", "1.6B", 1024),
        ),
    ),
)
"""Every type of `rushlight.models.ARCHITECTURES`."""
