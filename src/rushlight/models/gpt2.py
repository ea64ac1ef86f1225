"""GPT-2 and its relatives: 124M to 1.5B, distilgpt2, DialoGPT, Cerebras-GPT.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Names and arithmetic are those of
transformers' modeling_gpt2.py, which the published .safetensors files follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rushlight.models import ACTIVATION_NAMES, GPT2_VOCAB_SIZE, OTHER_HEADS, Origin, PretrainedModel, TextConfig, field
from rushlight.nn import Activation, Conv1D, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.nn import Array, Batch, Tensor


@dataclass(frozen=True, kw_only=True)
class GPT2Config(TextConfig):
    """The sizes and switches of a GPT-2, each under its key in config.json."""

    model_type: ClassVar = "gpt2"
    benign_keys: ClassVar = frozenset({"n_ctx"})  # the size of the causal mask, which old files store
    unsupported: ClassVar = {"add_cross_attention": (False,), "pruned_heads": ({},)}

    vocab_size: int = field.size(axis=("wte.weight", 0))
    n_positions: int = field.positions(axis=("wpe.weight", 0), older_key="n_ctx", aliases=("max_position_embeddings",))
    n_embd: int = field.width(axis=("wte.weight", 1), aliases=("hidden_size",))
    n_layer: int = field.layers(blocks="h", aliases=("num_hidden_layers",))
    n_head: int = field.heads(aliases=("num_attention_heads",))
    n_inner: int = field.size(
        lambda read: 4 * read["n_embd"],
        infer=field.other_side("h.0.mlp.c_fc.weight", of=("wte.weight", 1)),
        at_most=2**26,
    )
    activation_function: str = field.activation("gelu_new")
    layer_norm_epsilon: float = field.positive(1e-5)
    scale_attn_weights: bool = field.flag(True)
    scale_attn_by_inverse_layer_idx: bool = field.flag(False)
    reorder_and_upcast_attn: bool = field.flag(False)
    """Float32 attention scores whatever the weights, as every backend here computes them."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> Self:
        """The config without a config.json: sizes from shapes, and 64 channels per head as in every published GPT-2."""
        return cls(**bare_file_fields(tensors, file))


class Attention(Module):
    """Causal self-attention of n_head heads. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        self.layer = layer
        self.n_head = config.n_head
        self.scale = 1.0
        if config.scale_attn_weights:
            self.scale /= math.sqrt(config.n_embd // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.ops.split(self.c_attn(x), 3)  # 3 × (N, C)
        heads = self.ops.attention(q, k, v, batch, layer=self.layer, n_head=self.n_head, scale=self.scale)
        return self.c_proj(heads)


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config) -> None:
        self.c_fc = Conv1D(config.n_embd, config.n_inner)
        self.act = Activation(ACTIVATION_NAMES[config.activation_function])
        self.c_proj = Conv1D(config.n_inner, config.n_embd)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPT2(PretrainedModel):
    """Token and position embeddings, n_layer blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = GPT2Config
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "wte.weight"},
    )
    landmarks: ClassVar = frozenset({"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"})

    def __init__(self, config: GPT2Config) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.wte(batch.ids) + self.wpe(batch.positions)  # (N, C)
        for block in self.h:
            x = block(x, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))

    @classmethod
    def recognises(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the names are GPT-2's, and queries, keys and values have the same width.

        GPT-BigCode has the same names, and narrower keys and values. nanoGPT and llm.c save transposed weights.
        """
        shapes = {cls.rules.canonical(name): tensor.shape for name, tensor in tensors.items()}
        table = shapes.get("wte.weight") or shapes.get("lm_head.weight")  # a file may hold either of two tied tensors
        if not table or not cls.landmarks - {"wte.weight"} <= shapes.keys() or len(table) != 2:
            return False
        return sorted(shapes["h.0.attn.c_attn.weight"]) == [table[1], 3 * table[1]]

    @classmethod
    def describe_source(cls, tensors: Mapping[str, Tensor]) -> Origin | None:
        """The program, from its layers: nanoGPT and llm.c's train_gpt2.py save Linear weights, transformers Conv1D."""
        shapes = {cls.rules.canonical(name): tensor.shape for name, tensor in tensors.items()}
        c_attn = shapes.get("h.0.attn.c_attn.weight", ())
        if len(c_attn) != 2:
            return None
        if c_attn[0] < c_attn[1]:
            if any(name.startswith(cls.rules.prefixes) for name in tensors):
                return Origin("transformers, GPT2LMHeadModel: names with transformer.")
            return Origin("transformers, GPT2Model: names without a prefix, as openai-community/gpt2 has them")
        if "h.0.attn.c_attn.bias" not in shapes:
            saved_by = "nanoGPT, with bias=False"
        elif any(name.endswith(".attn.bias") for name in shapes):
            saved_by = "llm.c's train_gpt2.py, or nanoGPT without flash attention: both write the same"
        else:
            saved_by = "nanoGPT"
        return Origin(saved_by, "activation_function", *UNKNOWN_GELU)


ARCHITECTURE = GPT2

HEAD_DIM = 64
END_OF_TEXT = 50256

UNKNOWN_GELU = (
    "no tensor shows which GELU the model was trained with",
    "GPT-2 and llm.c use gelu_tanh, nanoGPT since 2023 gelu_erf; gelu_tanh is assumed.",
    'if nanoGPT trained it, set activation_function to "gelu" in config.json, which is gelu_erf',
)


def bare_file_fields(tensors: Mapping[str, Tensor], file: str | None) -> dict[str, Any]:
    """The fields of GPT2Config for a checkpoint without a config.json.

    Raises:
        ConfigError: they cannot be inferred from the shapes.
    """
    paths = {GPT2.rules.canonical(name): tensor for name, tensor in tensors.items()}
    head = paths.get("lm_head.weight")
    table = paths.get("wte.weight", head)
    shapes = {path: tensor.shape for path, tensor in paths.items()} | ({"wte.weight": table.shape} if table else {})
    sizes = GPT2Config.infer_sizes(shapes)
    n_embd = sizes.get("n_embd", 0)
    if {"vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"} - sizes.keys():
        raise GPT2Config.without_config("the shapes do not show the sizes", file)
    if n_embd % HEAD_DIM:
        raise GPT2Config.without_config(f"n_embd {n_embd} is not a multiple of {HEAD_DIM}", file)
    is_gpt2_vocabulary = sizes["vocab_size"] == GPT2_VOCAB_SIZE
    return sizes | {
        "n_head": n_embd // HEAD_DIM,
        "tie_word_embeddings": head is None or head is table or head.same_data(table),
        "bos_token_id": END_OF_TEXT if is_gpt2_vocabulary else None,
        "eos_token_id": (END_OF_TEXT,) if is_gpt2_vocabulary else (),
    }
