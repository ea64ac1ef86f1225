"""A port of model, written by `rushlight port`.

It computes what models of these names and shapes usually do. Check what is marked Assumed, best with
`rushlight record` and `rushlight verify`, which name a module that differs.

    rushlight check SOURCE --port FILE
    rushlight generate SOURCE --port FILE -p TEXT
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rushlight.models import ACTIVATION_NAMES, PretrainedModel, Rope, TextConfig, field
from rushlight.nn import Activation, Embedding, Linear, Module, ModuleList, NameRules, RMSNorm, Rotary


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """The sizes and switches of the checkpoint, each under its key in config.json."""

    # Assumed: these keys of config.json change nothing: max_window_layers.
    benign_keys: ClassVar = frozenset({"attention_bias", "max_window_layers"})

    tie_word_embeddings: bool = field.flag(False)
    hidden_size: int = field.width()
    num_hidden_layers: int = field.layers()
    num_attention_heads: int = field.heads()
    num_key_value_heads: int = field.kv_heads(default=2)
    head_dim: int = field.head_dim(default=10)
    intermediate_size: int = field.size(52)
    max_position_embeddings: int = field.positions()
    rms_norm_eps: float = field.positive(1e-6)
    hidden_act: str = field.activation("silu")
    rope_parameters: Rope = field.rope()
    sliding_window: tuple[int | None, ...] = field.windows(switch="use_sliding_window")


class Attention(Module):
    """Causal self-attention. (N, C) -> (N, C)"""

    def __init__(self, config, layer):
        heads = self.heads = config.heads
        self.layer = layer
        self.window = config.windows[layer]
        # Assumed: scores are scaled by 1/√head_dim.
        self.scale = 1 / math.sqrt(heads.dim)
        self.q_proj = Linear(config.hidden_size, heads.n * heads.dim, bias=False)
        self.k_proj = Linear(config.hidden_size, heads.n_kv * heads.dim, bias=False)
        self.v_proj = Linear(config.hidden_size, heads.n_kv * heads.dim, bias=False)
        self.q_norm = RMSNorm(heads.dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(heads.dim, eps=config.rms_norm_eps)
        self.o_proj = Linear(heads.n * heads.dim, config.hidden_size, bias=False)

    def __call__(self, x, angles, batch):
        ops, heads = self.ops, self.heads
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        # Assumed: queries and keys are normalised before they are rotated.
        q, k = self.q_norm(q), self.k_norm(k)
        # Assumed: rotary embedding of every layer, of channel pairs (i, i + r/2).
        q = ops.rotary(q, angles, heads.n)
        k = ops.rotary(k, angles, heads.n_kv)
        # Assumed: a window of W positions includes the row's own.
        x = ops.attention(q, k, v, batch, layer=self.layer, n_head=heads.n, scale=self.scale, window=self.window)
        return self.o_proj(x)


class MLP(Module):
    """Gated linear unit. (N, C) -> (N, C)"""

    def __init__(self, config):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = Activation(ACTIVATION_NAMES[config.hidden_act])

    def __call__(self, x):
        # Assumed: the activation is that of gate_proj, and up_proj is multiplied with it.
        gate, up = self.act_fn(self.gate_proj(x)), self.up_proj(x)
        return self.down_proj(gate * up)


class Block(Module):
    """Transformer block: attention and MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config, layer):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x, angles, batch):
        # Assumed: each norm comes before its part, whose output is added to the stream.
        x = x + self.self_attn(self.input_layernorm(x), angles, batch)
        return x + self.mlp(self.post_attention_layernorm(x))


class Newcomer(PretrainedModel):
    """Token embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Config
    rules: ClassVar = NameRules(prefixes=("model.",), tied={"lm_head.weight": "embed_tokens.weight"})

    def __init__(self, config):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        # Assumed: norms are x / √(mean of squares) · weight, not · (1 + weight), and do not subtract the mean.
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rope = config.rope_parameters
        self.rotary_emb = Rotary(rope.frequencies(config.context_length), rope.scale)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch):
        # Assumed: embeddings are not multiplied by a factor, such as Gemma's √hidden_size.
        x = self.embed_tokens(batch.ids)  # (N, C)
        angles = self.rotary_emb(batch.positions)  # (N, r)
        for block in self.layers:
            x = block(x, angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x):
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.norm(x))


ARCHITECTURE = Newcomer
