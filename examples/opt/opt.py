"""OPT (Zhang et al., 2022, arXiv:2205.01068), ported to rushlight in one file, which `--port` loads.

    rushlight generate facebook/opt-125m --port examples/opt/opt.py -p "My name is"

Names and arithmetic are those of transformers' modeling_opt.py. What differs from GPT-2: the tensor names, Linear in
place of Conv1D, separate projections of queries, keys and values, ReLU, and a position table that starts at row 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import ACTIVATION_NAMES, PretrainedModel, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch

FIRST_POSITION = 2
"""The row of position 0: the position table was trained next to a padding index, and its first rows are unused."""


@dataclass(frozen=True, kw_only=True)
class OPTConfig(TextConfig):
    """The sizes and switches of an OPT, each under its key in config.json.

    The arithmetic of the 350M model, which normalises after the residual sums and projects its embeddings, is refused.
    """

    model_type: ClassVar = "opt"
    unsupported: ClassVar = {
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
    }

    vocab_size: int = field.size(axis=("decoder.embed_tokens.weight", 0))
    hidden_size: int = field.width(axis=("decoder.embed_tokens.weight", 1), aliases=("word_embed_proj_dim",))
    num_hidden_layers: int = field.layers(blocks="decoder.layers")
    num_attention_heads: int = field.heads()
    ffn_dim: int = field.size(axis=("decoder.layers.0.fc1.weight", 0))
    max_position_embeddings: int = field.positions()
    activation_function: str = field.activation("relu")
    enable_bias: bool = field.flag(True)


class Attention(Module):
    """Causal self-attention. (N, C) -> (N, C)"""

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.layer = layer
        self.n_head = config.num_attention_heads
        self.scale = 1 / math.sqrt(config.hidden_size // config.num_attention_heads)
        size, bias = config.hidden_size, config.enable_bias
        self.k_proj = Linear(size, size, bias=bias)
        self.v_proj = Linear(size, size, bias=bias)
        self.q_proj = Linear(size, size, bias=bias)
        self.out_proj = Linear(size, size, bias=bias)

    def __call__(self, x: Array, batch: Batch) -> Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = self.ops.attention(q, k, v, batch, layer=self.layer, n_head=self.n_head, scale=self.scale)
        return self.out_proj(heads)


class DecoderLayer(Module):
    """Pre-norm transformer block: attention, then two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: OPTConfig, layer: int) -> None:
        self.self_attn = Attention(config, layer)
        self.activation_fn = Activation(ACTIVATION_NAMES[config.activation_function])
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)
        self.fc1 = Linear(config.hidden_size, config.ffn_dim, bias=config.enable_bias)
        self.fc2 = Linear(config.ffn_dim, config.hidden_size, bias=config.enable_bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.self_attn(self.self_attn_layer_norm(x), batch)
        return x + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(x))))


class Decoder(Module):
    """Token and position embeddings, the layers, a norm. A batch of N rows -> (N, C)"""

    def __init__(self, config: OPTConfig) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        n_rows = config.max_position_embeddings + FIRST_POSITION
        self.embed_positions = Embedding(n_rows, config.hidden_size, first_row=FIRST_POSITION)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=1e-5)
        self.layers = ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))

    def __call__(self, batch: Batch) -> Array:
        x = self.embed_tokens(batch.ids) + self.embed_positions(batch.positions)  # (N, C)
        for layer in self.layers:
            x = layer(x, batch)
        return self.final_layer_norm(x)


class OPT(PretrainedModel):
    """The decoder and its head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = OPTConfig
    rules: ClassVar = NameRules(prefixes=("model.",), tied={"lm_head.weight": "decoder.embed_tokens.weight"})

    def __init__(self, config: OPTConfig) -> None:
        self.decoder = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.decoder(batch)
        return self.lm_head(self.ops.take(x, batch.logit_rows))  # (R, V): only the rows whose logits are wanted


ARCHITECTURE = OPT
