"""Phi-1, Phi-1.5 and Phi-2: attention and MLP read the same norm, and part of each head is rotated.

Li et al., arXiv:2309.05463. Names and arithmetic are those of transformers' modeling_phi.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import ACTIVATION_NAMES, OTHER_HEADS, PretrainedModel, Rope, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules, Rotary

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class PhiConfig(TextConfig):
    """The sizes and switches of a Phi, each under its key in config.json."""

    model_type: ClassVar = "phi"
    unsupported: ClassVar = {"qk_layernorm": (False,)}

    tie_word_embeddings: bool = field.flag(False)
    hidden_size: int = field.width(axis=("embed_tokens.weight", 1))
    num_hidden_layers: int = field.layers(blocks="layers")
    num_attention_heads: int = field.heads()
    num_key_value_heads: int = field.kv_heads(default=lambda read: read["num_attention_heads"])
    intermediate_size: int = field.size(axis=("layers.0.mlp.fc1.weight", 0), at_most=2**26)
    max_position_embeddings: int = field.positions()
    layer_norm_eps: float = field.positive(1e-5)
    hidden_act: str = field.activation("gelu_new")
    rope_parameters: Rope = field.rope(fraction=0.5)


class Attention(Module):
    """Causal self-attention; some channels of each head are rotated. (N, C) -> (N, C)"""

    def __init__(self, config: PhiConfig, layer: int) -> None:
        self.layer, self.heads = layer, config.heads
        self.scale = 1 / math.sqrt(config.heads.dim)
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.heads.n_kv * config.heads.dim)
        self.v_proj = Linear(config.hidden_size, config.heads.n_kv * config.heads.dim)
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        ops, heads = self.ops, self.heads
        q = ops.rotary(self.q_proj(x), angles, heads.n)
        k = ops.rotary(self.k_proj(x), angles, heads.n_kv)
        v = self.v_proj(x)
        return self.dense(ops.attention(q, k, v, batch, layer=self.layer, n_head=heads.n, scale=self.scale))


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: PhiConfig) -> None:
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = Activation(ACTIVATION_NAMES[config.hidden_act])
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation_fn(self.fc1(x)))


class Layer(Module):
    """Attention and MLP of the same norm, both added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: PhiConfig, layer: int) -> None:
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        normed = self.input_layernorm(x)
        return x + self.self_attn(normed, angles, batch) + self.mlp(normed)


class Phi(PretrainedModel):
    """Token embeddings, layers, a norm, and a head with a bias. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = PhiConfig
    rules: ClassVar = NameRules(
        prefixes=("model.",),
        buffers=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "embed_tokens.weight"},
    )

    def __init__(self, config: PhiConfig) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        rope = config.rope_parameters
        self.rotary_emb = Rotary(partial(rope.frequencies, config.context_length), rope.scale)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def __call__(self, batch: Batch) -> Array:
        x = self.embed_tokens(batch.ids)  # (N, C)
        angles = self.rotary_emb(batch.positions)  # (N, r)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.final_layernorm(x))


ARCHITECTURE = Phi
