"""Writes the benchmark checkpoints: the shapes of well-known models, with seeded random weights."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SEED = 124


class Shape(NamedTuple):
    """The sizes of a GPT-2."""

    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 12
    n_positions: int = 1024
    vocab_size: int = 50257


GPT2_SMALL = Shape()


def write_checkpoint(folder: Path, shape: Shape = GPT2_SMALL) -> None:
    """Writes model.safetensors (float32), config.json and, for GPT-2's vocabulary, its tokenizer's files.

    The weights are scaled so that every part affects the logits: attention is not uniform, the blocks outweigh the
    embeddings (or a tied random head would repeat each token), and biases are non-zero, so that losing a single one
    moves the logits by several times the float32 tolerance.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(shape), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": shape.vocab_size - 1,
        "eos_token_id": shape.vocab_size - 1,
        "dtype": "float32",
        "n_ctx": shape.n_positions,
        **shape._asdict(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if shape.vocab_size == GPT2_SMALL.vocab_size:
        _write_tokenizer(folder)


def random_tensors(shape: Shape) -> dict[str, NDArray[np.float32]]:
    """The tensors by their names in transformers."""
    rng = np.random.default_rng(SEED)
    c = shape.n_embd

    def normal(*dims: int, std: float, mean: float = 0.0) -> NDArray[np.float32]:
        return rng.standard_normal(dims, np.float32) * np.float32(std) + np.float32(mean)

    tensors = {
        "transformer.wte.weight": normal(shape.vocab_size, c, std=0.05),
        "transformer.wpe.weight": normal(shape.n_positions, c, std=0.02),
    }
    norms = ["ln_f", *(f"h.{i}.{name}" for i in range(shape.n_layer) for name in ("ln_1", "ln_2"))]
    for name in norms:
        tensors[f"transformer.{name}.weight"] = normal(c, std=0.1, mean=1.0)
        tensors[f"transformer.{name}.bias"] = normal(c, std=0.1)
    products = {"attn.c_attn": (c, 3 * c), "attn.c_proj": (c, c), "mlp.c_fc": (c, 4 * c), "mlp.c_proj": (4 * c, c)}
    for i in range(shape.n_layer):
        for name, (n_in, n_out) in products.items():
            tensors[f"transformer.h.{i}.{name}.weight"] = normal(n_in, n_out, std=0.05)
            tensors[f"transformer.h.{i}.{name}.bias"] = normal(n_out, std=0.1)
    return tensors


SMOLLM2_135M = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
QWEN3_600M = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
LLAMA32_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
"""Without the scaling of its rotary frequencies, which changes numbers, not work."""

COMMON = {"hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "dtype": "bfloat16"}


def write_decoder(folder: Path, config: dict[str, Any]) -> None:
    """Writes a decoder with rotary embeddings: bf16 weights, config.json, and GPT-2's vocabulary where it fits.

    The folder appears only when it is complete.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    _save_bf16(decoder_shapes(config), partial / "model.safetensors")
    end = min(config["vocab_size"], GPT2_SMALL.vocab_size) - 1
    written = {**COMMON, "bos_token_id": end, "eos_token_id": end, **config}
    (partial / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    if config["vocab_size"] >= GPT2_SMALL.vocab_size:
        _write_tokenizer_json(partial)
    partial.rename(folder)


def decoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors by their names in transformers."""
    c, d, f = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    n_q, n_kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config["vocab_size"], c), "norm": (c,)}
    for i in range(config["num_hidden_layers"]):
        layer = {"input_layernorm": (c,), "post_attention_layernorm": (c,)}
        layer |= {"self_attn.q_proj": (n_q, c), "self_attn.k_proj": (n_kv, c), "self_attn.v_proj": (n_kv, c)}
        layer |= {"self_attn.o_proj": (c, n_q)}
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm": (d,), "self_attn.k_norm": (d,)}
        layer |= {"mlp.gate_proj": (f, c), "mlp.up_proj": (f, c), "mlp.down_proj": (c, f)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return {f"model.{name}.weight": shape for name, shape in shapes.items()}


def _save_bf16(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Writes random tensors, one after the other: those of norms around 1, others around 0."""
    rng = np.random.default_rng(SEED)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for shape in shapes.values():
            std, mean = (0.1, 1.0) if len(shape) == 1 else (0.05, 0.0)
            values = rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def _write_tokenizer_json(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from rushlight.text.gpt2 import vocabulary_and_merges

    tokenizer = Tokenizer(models.BPE(*vocabulary_and_merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    # As Qwen3's: CTranslate2 takes the token of padding for the first of a text.
    settings = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>") | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Writes the vocabulary of GPT-2 in the files that other runtimes read."""
    from rushlight.text.gpt2 import vocabulary_and_merges

    vocab, merges = vocabulary_and_merges()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}), encoding="utf-8")
