"""CodeGen (Nijkamp et al., 2022, arXiv:2203.13474), ported to rushlight in one file, which `--port` loads.

    rushlight generate Salesforce/codegen-350M-mono --port examples/codegen/codegen.py -p "def fibonacci(n):"

Names and arithmetic are those of transformers' modeling_codegen.py. What differs from GPT-2: the tensor names, Linear
in place of Conv1D, rotary embeddings of part of each head in place of a position table, attention and MLP side by side,
and a projection of queries, values and keys whose rows are in the order of the four devices that trained it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import ACTIVATION_NAMES, PretrainedModel, Rope, TextConfig, field
from rushlight.nn import Activation, Embedding, LayerNorm, Linear, Module, ModuleList, NameRules, Rotary

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch

N_SHARDS = 4
"""The devices between which the fused projection was divided; each has [queries | values | keys] of its heads."""


@dataclass(frozen=True, kw_only=True)
class CodeGenConfig(TextConfig):
    """The sizes and switches of a CodeGen, each under its key in config.json."""

    model_type: ClassVar = "codegen"
    benign_keys: ClassVar = frozenset({"n_ctx", "scale_attn_weights"})  # of GPT-2; scores are always divided by √D
    unsupported: ClassVar = {"add_cross_attention": (False,)}

    tie_word_embeddings: bool = field.flag(False)
    n_positions: int = field.positions(aliases=("max_position_embeddings",))
    n_embd: int = field.width(axis=("wte.weight", 1), aliases=("hidden_size",))
    n_layer: int = field.layers(blocks="h", aliases=("num_hidden_layers",))
    n_head: int = field.heads(aliases=("num_attention_heads",))
    n_inner: int = field.size(lambda read: 4 * read["n_embd"], at_most=2**26)
    rotary_dim: int = field.size(64)
    activation_function: str = field.activation("gelu_new")
    layer_norm_epsilon: float = field.positive(1e-5)


class Attention(Module):
    """Causal self-attention; the first rotary_dim channels of each head are rotated in pairs. (N, C) -> (N, C)"""

    def __init__(self, config: CodeGenConfig, layer: int) -> None:
        self.layer, self.n_head = layer, config.n_head
        self.scale = 1 / math.sqrt(config.heads.dim)
        self.qkv_proj = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = Linear(config.n_embd, config.n_embd, bias=False)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        ops, n_head = self.ops, self.n_head
        q, v, k = ops.split(self.qkv_proj(x), 3, groups=N_SHARDS)  # 3 × (N, C)
        q = ops.rotary(q, angles, n_head, interleaved=True)
        k = ops.rotary(k, angles, n_head, interleaved=True)
        return self.out_proj(ops.attention(q, k, v, batch, layer=self.layer, n_head=n_head, scale=self.scale))


class MLP(Module):
    """Two layers with an activation between. (N, C) -> (N, C)"""

    def __init__(self, config: CodeGenConfig) -> None:
        self.fc_in = Linear(config.n_embd, config.n_inner)
        self.act = Activation(ACTIVATION_NAMES[config.activation_function])
        self.fc_out = Linear(config.n_inner, config.n_embd)

    def __call__(self, x: Array) -> Array:
        return self.fc_out(self.act(self.fc_in(x)))


class Block(Module):
    """Attention and MLP of the same norm, both added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: CodeGenConfig, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        normed = self.ln_1(x)
        return x + self.attn(normed, angles, batch) + self.mlp(normed)


class CodeGen(PretrainedModel):
    """Token embeddings, blocks, a norm, and a head with a bias. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = CodeGenConfig
    rules: ClassVar = NameRules(
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.causal_mask",),
        tied={"lm_head.weight": "wte.weight"},
    )

    def __init__(self, config: CodeGenConfig) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.h = ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.rotary = Rotary(Rope(10000.0, config.rotary_dim).frequencies(config.context_length))
        self.lm_head = Linear(config.n_embd, config.vocab_size)

    def __call__(self, batch: Batch) -> Array:
        x = self.wte(batch.ids)  # (N, C)
        angles = self.rotary(batch.positions)  # (N, rotary_dim)
        for block in self.h:
            x = block(x, angles, batch)
        x = self.ops.take(x, batch.logit_rows)  # (R, C): only the rows that need logits
        return self.lm_head(self.ln_f(x))


ARCHITECTURE = CodeGen
