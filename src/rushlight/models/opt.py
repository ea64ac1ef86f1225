"""OPT and Galactica.

Zhang et al., arXiv:2205.01068; Taylor et al., arXiv:2211.09085. Names and arithmetic are those of transformers'
modeling_opt.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import ACTIVATION_NAMES, OTHER_HEADS, PretrainedModel, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch

FIRST_POSITION = 2
"""The row of position 0: the position table was trained next to a padding index, and its first rows are unused."""
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class OPTConfig(TextConfig):
    """The sizes and switches of an OPT, each under its key in config.json."""

    model_type: ClassVar = "opt"
    unsupported: ClassVar = {
        "layer_norm_elementwise_affine": (True,),
        "learned_embeddings": (True,),
        "scale_embeddings": (False,),
    }

    hidden_size: int = field.width(axis=("decoder.layers.0.fc1.weight", 1))
    word_embed_proj_dim: int = field.size(lambda read: read["hidden_size"], axis=("decoder.embed_tokens.weight", 1))
    num_hidden_layers: int = field.layers(blocks="decoder.layers")
    num_attention_heads: int = field.heads()
    ffn_dim: int = field.size(axis=("decoder.layers.0.fc1.weight", 0), at_most=2**26)
    max_position_embeddings: int = field.positions()
    activation_function: str = field.activation("relu")
    do_layer_norm_before: bool = field.flag(True)
    _remove_final_layer_norm: bool = field.flag(False)
    enable_bias: bool = field.flag(True)

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer; without norms before them, a layer ends with one."""
        return self.do_layer_norm_before and not self._remove_final_layer_norm


class Attention(Module):
    """Causal self-attention. (N, C) -> (N, C)"""

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.layer, self.n_head = layer, config.num_attention_heads
        self.scale = 1 / math.sqrt(config.heads.dim)
        width, bias = config.hidden_size, config.enable_bias
        self.k_proj = Linear(width, width, bias=bias)
        self.v_proj = Linear(width, width, bias=bias)
        self.q_proj = Linear(width, width, bias=bias)
        self.out_proj = Linear(width, width, bias=bias)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(self.ops.attention(q, k, v, batch, layer=self.layer, n_head=self.n_head, scale=self.scale))


class DecoderLayer(Module):
    """Attention, then MLP, each added to the residual stream; norms are before them or after the sums. (N, C) -> (N, C)

    The 350M model normalises after the sums, the others before.
    """

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.norm_first = config.do_layer_norm_before
        self.self_attn = Attention(config, layer)
        self.activation_fn = Activation(ACTIVATION_NAMES[config.activation_function])
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, eps=EPS)
        self.fc1 = Linear(config.hidden_size, config.ffn_dim, bias=config.enable_bias)
        self.fc2 = Linear(config.ffn_dim, config.hidden_size, bias=config.enable_bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=EPS)

    def mlp(self, x: Array) -> Array:
        return self.fc2(self.activation_fn(self.fc1(x)))

    def __call__(self, x: Array, batch: Batch) -> Array:
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), batch)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, batch))
        return self.final_layer_norm(x + self.mlp(x))


class Decoder(Module):
    """Token and position embeddings, the layers, a norm. A batch of N rows -> (N, C)

    The tokens of the 350M model have narrower embeddings, of E channels, which are projected to C and back.
    """

    def __init__(self, config: OPTConfig) -> None:
        width, n_embed = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = Embedding(config.vocab_size, n_embed)
        n_rows = config.max_position_embeddings + FIRST_POSITION
        self.embed_positions = Embedding(n_rows, width, first_row=FIRST_POSITION)
        self.project_out = Linear(width, n_embed, bias=False) if n_embed != width else None
        self.project_in = Linear(n_embed, width, bias=False) if n_embed != width else None
        self.final_layer_norm = LayerNorm(width, eps=EPS) if config.has_final_norm else None
        self.layers = ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))

    def __call__(self, batch: Batch) -> Array:
        x = self.embed_tokens(batch.ids)  # (N, E)
        x = (self.project_in(x) if self.project_in else x) + self.embed_positions(batch.positions)  # (N, C)
        for layer in self.layers:
            x = layer(x, batch)
        x = self.ops.take(x, batch.logit_rows)  # (R, C): only the rows that need logits
        x = self.final_layer_norm(x) if self.final_layer_norm else x
        return self.project_out(x) if self.project_out else x


class OPT(PretrainedModel):
    """The decoder and its head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = OPTConfig
    rules: ClassVar = NameRules(
        prefixes=("model.",),
        buffers=(r"decoder\.version",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "decoder.embed_tokens.weight"},
    )

    def __init__(self, config: OPTConfig) -> None:
        self.decoder = Decoder(config)
        self.lm_head = Linear(config.word_embed_proj_dim, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        return self.lm_head(self.decoder(batch))


ARCHITECTURE = OPT
