"""Writes the benchmark checkpoint: the shape of GPT-2 small, 124,439,808 parameters, with seeded random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

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


def _write_tokenizer(folder: Path) -> None:
    """Writes the vocabulary of GPT-2 in the files that other runtimes read."""
    from rushlight.text.gpt2 import vocabulary_and_merges

    vocab, merges = vocabulary_and_merges()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}), encoding="utf-8")
