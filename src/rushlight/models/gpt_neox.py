"""GPT-NeoX: Pythia, GPT-NeoX-20B and their relatives.

Black et al., arXiv:2204.06745. Names and arithmetic are those of transformers' modeling_gpt_neox.py.
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
class GPTNeoXConfig(TextConfig):
    """The sizes and switches of a GPT-NeoX, each under its key in config.json."""

    model_type: ClassVar = "gpt_neox"

    tie_word_embeddings: bool = field.flag(False)
    hidden_size: int = field.width(axis=("embed_in.weight", 1))
    num_hidden_layers: int = field.layers(blocks="layers")
    num_attention_heads: int = field.heads()
    intermediate_size: int = field.size(axis=("layers.0.mlp.dense_h_to_4h.weight", 0), at_most=2**26)
    max_position_embeddings: int = field.positions()
    layer_norm_eps: float = field.positive(1e-5)
    hidden_act: str = field.activation("gelu")
    use_parallel_residual: bool = field.flag(True)
    attention_bias: bool = field.flag(True)
    rope_parameters: Rope = field.rope(theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25)


class Attention(Module):
    """Causal self-attention; some channels of each head are rotated. (N, C) -> (N, C)"""

    def __init__(self, config: GPTNeoXConfig, layer: int) -> None:
        self.layer, self.n_head = layer, config.num_attention_heads
        self.scale = 1 / math.sqrt(config.heads.dim)
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        ops, n_head = self.ops, self.n_head
        q, k, v = ops.split(self.query_key_value(x), 3, groups=n_head)  # each head has its q, k and v side by side
        q, k = ops.rotary(q, angles, n_head), ops.rotary(k, angles, n_head)
        return self.dense(ops.attention(q, k, v, batch, layer=self.layer, n_head=n_head, scale=self.scale))


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, width: int, n_inner: int, activation: str) -> None:
        self.dense_h_to_4h = Linear(width, n_inner)
        self.act = Activation(activation)
        self.dense_4h_to_h = Linear(n_inner, width)

    def __call__(self, x: Array) -> Array:
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))


class Layer(Module):
    """Attention and MLP, side by side or one after the other, added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPTNeoXConfig, layer: int) -> None:
        self.parallel = config.use_parallel_residual
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, ACTIVATION_NAMES[config.hidden_act])

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        y = x + self.attention(self.input_layernorm(x), angles, batch)
        return y + self.mlp(self.post_attention_layernorm(x if self.parallel else y))


class GPTNeoX(PretrainedModel):
    """Token embeddings, layers, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = GPTNeoXConfig
    rules: ClassVar = NameRules(
        prefixes=("gpt_neox.",),
        buffers=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
        heads=OTHER_HEADS,
        tied={"embed_out.weight": "embed_in.weight"},
        modules={"lm_head": "embed_out"},
    )

    def __init__(self, config: GPTNeoXConfig) -> None:
        self.embed_in = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        rope = config.rope_parameters
        self.rotary_emb = Rotary(partial(rope.frequencies, config.context_length), rope.scale)
        self.embed_out = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.embed_in(batch.ids)  # (N, C)
        angles = self.rotary_emb(batch.positions)  # (N, r)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.embed_out(self.final_layer_norm(x))


ARCHITECTURE = GPTNeoX
