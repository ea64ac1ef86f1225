"""GPT-BigCode: SantaCoder and StarCoder. A GPT-2 of Linear layers whose query heads share one head of keys and values.

Li et al., arXiv:2305.06161; Shazeer, arXiv:1911.02150. Names and arithmetic are those of transformers'
modeling_gpt_bigcode.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import OTHER_HEADS, Fields, PretrainedModel, TextConfig, field
from rushlight.models.gpt_neo import MLP
from rushlight.nn import Embedding, LayerNorm, Linear, Module, ModuleList, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.nn import Array, Batch


def read_kv_heads(fields: Fields, name: str, before: Mapping[str, Any]) -> int:
    """The heads of keys and values, which follow from `multi_query`: one, or as many as of queries."""
    n: int = 1 if before["multi_query"] else before["n_head"]
    fields.alias(name, "the number that multi_query means", n)
    return n


@dataclass(frozen=True, kw_only=True)
class GPTBigCodeConfig(TextConfig):
    """The sizes and switches of a GPT-BigCode, each under its key in config.json."""

    model_type: ClassVar = "gpt_bigcode"
    benign_keys: ClassVar = frozenset(  # of a runner that allocated keys and values itself
        """inference_runner max_batch_size max_sequence_length pad_key_length pre_allocate_kv_cache
        validate_runner_input""".split()
    )
    unsupported: ClassVar = {"add_cross_attention": (False,)}

    n_positions: int = field.positions(axis=("wpe.weight", 0), aliases=("max_position_embeddings",))
    n_embd: int = field.width(axis=("wte.weight", 1), aliases=("hidden_size",))
    n_layer: int = field.layers(blocks="h", aliases=("num_hidden_layers",))
    n_head: int = field.heads(aliases=("num_attention_heads",))
    multi_query: bool = field.flag(True)
    num_key_value_heads: int = field.computed(read_kv_heads, role="kv_heads")
    n_inner: int = field.size(lambda read: 4 * read["n_embd"], at_most=2**26)
    activation_function: str = field.activation("gelu_pytorch_tanh")
    layer_norm_epsilon: float = field.positive(1e-5)
    scale_attn_weights: bool = field.flag(True)


class Attention(Module):
    """Causal self-attention. (N, C) -> (N, C)"""

    def __init__(self, config: GPTBigCodeConfig, layer: int) -> None:
        self.layer, self.heads, self.multi_query = layer, config.heads, config.multi_query
        self.scale = 1 / math.sqrt(config.heads.dim) if config.scale_attn_weights else 1.0
        self.c_attn = Linear(config.n_embd, config.n_embd + 2 * config.heads.n_kv * config.heads.dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def __call__(self, x: Array, batch: Batch) -> Array:
        n, _, dim = self.heads
        if self.multi_query:
            q, k, v = self.ops.split(self.c_attn(x), (n * dim, dim, dim))
        else:
            q, k, v = self.ops.split(self.c_attn(x), 3, groups=n)  # each head has its q, k and v side by side
        x = self.ops.attention(q, k, v, batch, layer=self.layer, n_head=n, scale=self.scale)
        return self.c_proj(x)


class Block(Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: GPTBigCodeConfig, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config.n_embd, config.n_inner, config.activation_function)

    def __call__(self, x: Array, batch: Batch) -> Array:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPTBigCode(PretrainedModel):
    """Token and position embeddings, blocks, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar[Any] = GPTBigCodeConfig
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "wte.weight"},
    )

    def __init__(self, config: GPTBigCodeConfig) -> None:
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


ARCHITECTURE = GPTBigCode
