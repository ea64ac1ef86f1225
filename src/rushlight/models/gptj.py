"""GPT-J: attention and MLP read the same norm, and rotary embeddings turn neighbouring channels.

Wang and Komatsuzaki, "GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model", 2021. Names and arithmetic are
those of transformers' modeling_gptj.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import ACTIVATION_NAMES, OTHER_HEADS, Fields, PretrainedModel, Rope, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules, Rotary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.nn import Array, Batch


def read_rotary_dim(fields: Fields, name: str, before: Mapping[str, Any]) -> int:
    """The channels of each head that are rotated: an even number, 64 by default; null is all."""
    head_dim = before["n_embd"] // before["n_head"]
    n_channels = head_dim if fields.is_null(name) else fields.size(name, 64, at_most=head_dim)
    if n_channels % 2:
        fields.problem(f"{name} is {n_channels}, expected an even number")
    return n_channels


@dataclass(frozen=True, kw_only=True)
class GPTJConfig(TextConfig):
    """The sizes and switches of a GPT-J, each under its key in config.json."""

    model_type: ClassVar = "gptj"
    benign_keys: ClassVar = frozenset({"scale_attn_weights"})  # of GPT-2; GPT-J always divides scores by √D
    unsupported: ClassVar = {"rotary": (True,), "add_cross_attention": (False,)}

    tie_word_embeddings: bool = field.flag(False)
    n_positions: int = field.positions(aliases=("max_position_embeddings",))
    n_embd: int = field.width(axis=("wte.weight", 1), aliases=("hidden_size",))
    n_layer: int = field.layers(blocks="h", aliases=("num_hidden_layers",))
    n_head: int = field.heads(aliases=("num_attention_heads",))
    n_inner: int = field.size(lambda read: 4 * read["n_embd"], at_most=2**26)
    rotary_dim: int = field.computed(read_rotary_dim, 64)
    activation_function: str = field.activation("gelu_new")
    layer_norm_epsilon: float = field.positive(1e-5)


class Attention(Module):
    """Causal self-attention; the first rotary_dim channels of each head are rotated in pairs. (N, C) -> (N, C)"""

    def __init__(self, config: GPTJConfig, layer: int) -> None:
        self.layer, self.n_head = layer, config.n_head
        self.scale = 1 / math.sqrt(config.heads.dim)
        self.q_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.v_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.out_proj = Linear(config.n_embd, config.n_embd, bias=False)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        ops, n_head = self.ops, self.n_head
        q = ops.rotary(self.q_proj(x), angles, n_head, interleaved=True)
        k = ops.rotary(self.k_proj(x), angles, n_head, interleaved=True)
        v = self.v_proj(x)
        return self.out_proj(ops.attention(q, k, v, batch, layer=self.layer, n_head=n_head, scale=self.scale))


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: GPTJConfig) -> None:
        self.fc_in = Linear(config.n_embd, config.n_inner)
        self.act = Activation(ACTIVATION_NAMES[config.activation_function])
        self.fc_out = Linear(config.n_inner, config.n_embd)

    def __call__(self, x: Array) -> Array:
        return self.fc_out(self.act(self.fc_in(x)))


class Block(Module):
    """Attention and MLP of the same norm, both added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPTJConfig, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        normed = self.ln_1(x)
        return x + self.attn(normed, angles, batch) + self.mlp(normed)


class GPTJ(PretrainedModel):
    """Token embeddings, blocks, a norm, and a head with a bias. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = GPTJConfig
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)", r"embed_positions"),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "wte.weight"},
    )

    def __init__(self, config: GPTJConfig) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.rotary = Rotary(partial(Rope(10000.0, config.rotary_dim).frequencies, config.context_length))
        self.lm_head = Linear(config.n_embd, config.vocab_size)

    def __call__(self, batch: Batch) -> Array:
        x = self.wte(batch.ids)  # (N, C)
        angles = self.rotary(batch.positions)  # (N, rotary_dim)
        for block in self.h:
            x = block(x, angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))


ARCHITECTURE = GPTJ
