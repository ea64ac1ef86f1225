"""BLOOM: positions are biases of the attention scores, ALiBi, and embeddings are normalised.

BigScience, arXiv:2211.05100; Press et al., arXiv:2108.12409. Names and arithmetic are those of transformers'
modeling_bloom.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import OTHER_HEADS, PretrainedModel, TextConfig, field
from rushlight.nn import Activation, Constant, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class BloomConfig(TextConfig):
    """The sizes and switches of a BLOOM, each under its key in config.json."""

    model_type: ClassVar = "bloom"
    benign_keys: ClassVar = frozenset(  # of Megatron-DeepSpeed, which trained it; the MLP is always 4 C wide
        "bias_dropout_fusion masked_softmax_fusion n_inner offset_alibi skip_bias_add skip_bias_add_qkv".split()
    )
    unsupported: ClassVar = {"slow_but_exact": (False,)}

    hidden_size: int = field.width(older_key="n_embed", aliases=("n_embed",))
    n_layer: int = field.layers(older_key="num_hidden_layers", aliases=("num_hidden_layers",))
    n_head: int = field.heads(older_key="num_attention_heads", aliases=("num_attention_heads",))
    seq_length: int = field.positions(default=2048)
    """The positions that it was trained with; nothing in the model limits them."""
    layer_norm_epsilon: float = field.positive(1e-5)
    apply_residual_connection_post_layernorm: bool = field.flag(False)


def alibi_slopes(n_head: int) -> list[float]:
    """The slope of each head: 2^(-8i/n), i = 1 to n, for a power of two n.

    Of another number, the largest power of two below it gives the first slopes, and every other slope of its double the
    rest.
    """
    n = 2 ** int(math.log2(n_head))
    return [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * (n_head - n), 2)]


class Attention(Module):
    """Causal self-attention, added to the residual stream; scores fall with distance. 2 × (N, C) -> (N, C)"""

    def __init__(self, config: BloomConfig, layer: int) -> None:
        self.layer, self.n_head = layer, config.n_head
        self.scale = 1 / math.sqrt(config.heads.dim)
        self.slopes: Any = Constant(alibi_slopes(config.n_head))
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: Array, residual: Array, batch: Batch) -> Array:
        ops, n_head = self.ops, self.n_head
        q, k, v = ops.split(self.query_key_value(x), 3, groups=n_head)  # each head has its q, k and v side by side
        x = ops.attention(q, k, v, batch, layer=self.layer, n_head=n_head, scale=self.scale, slopes=self.slopes)
        return residual + self.dense(x)


class MLP(Module):
    """Two layers with an activation between, added to the residual stream. 2 × (N, C) -> (N, C)"""

    def __init__(self, config: BloomConfig) -> None:
        self.dense_h_to_4h = Linear(config.hidden_size, 4 * config.hidden_size)
        self.gelu_impl = Activation("gelu_tanh")
        self.dense_4h_to_h = Linear(4 * config.hidden_size, config.hidden_size)

    def __call__(self, x: Array, residual: Array) -> Array:
        return residual + self.dense_4h_to_h(self.gelu_impl(self.dense_h_to_4h(x)))


class Block(Module):
    """Attention, then MLP, each of a norm and added to what the norm reads, or returns. (N, C) -> (N, C)

    Attention and MLP add the residual themselves, as transformers' do, so that `rushlight verify` compares them.
    """

    def __init__(self, config: BloomConfig, layer: int) -> None:
        self.adds_to_norm = config.apply_residual_connection_post_layernorm
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = Attention(config, layer)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x: Array, batch: Batch) -> Array:
        normed = self.input_layernorm(x)
        x = self.self_attention(normed, normed if self.adds_to_norm else x, batch)
        normed = self.post_attention_layernorm(x)
        return self.mlp(normed, normed if self.adds_to_norm else x)


class Bloom(PretrainedModel):
    """Token embeddings, a norm, blocks, another norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = BloomConfig
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "word_embeddings.weight"},
    )

    def __init__(self, config: BloomConfig) -> None:
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.word_embeddings_layernorm(self.word_embeddings(batch.ids))  # (N, C)
        for block in self.h:
            x = block(x, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.ln_f(x))


ARCHITECTURE = Bloom
