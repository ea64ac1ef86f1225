"""Llama 1 to 3 and models of the same form: TinyLlama, SmolLM2 and many others.

Touvron et al., arXiv:2302.13971. Names and arithmetic are those of transformers' modeling_llama.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import ACTIVATION_NAMES, OTHER_HEADS, Heads, PretrainedModel, Rope, TextConfig, field
from rushlight.nn import Activation, Embedding, Linear, Module, ModuleList, NameRules, RMSNorm, Rotary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(TextConfig):
    """The sizes and switches of a Llama, each under its key in config.json."""

    model_type: ClassVar = "llama"
    benign_keys: ClassVar = frozenset({"is_llama_config"})  # of the code that trained SmolLM
    unsupported: ClassVar = {"rope_interleaved": (False,), "activation": ("swiglu",)}

    tie_word_embeddings: bool = field.flag(False)
    hidden_size: int = field.width(axis=("embed_tokens.weight", 1))
    num_hidden_layers: int = field.layers(blocks="layers")
    num_attention_heads: int = field.heads()
    num_key_value_heads: int = field.kv_heads(default=lambda read: read["num_attention_heads"])
    head_dim: int = field.head_dim(default=lambda read: read["hidden_size"] // read["num_attention_heads"])
    intermediate_size: int = field.size(
        infer=field.other_side("layers.0.mlp.up_proj.weight", of=("embed_tokens.weight", 1)), at_most=2**26
    )
    max_position_embeddings: int = field.positions()
    rms_norm_eps: float = field.positive(1e-6)
    hidden_act: str = field.activation("silu")
    attention_bias: bool = field.flag(False)
    mlp_bias: bool = field.flag(False)
    rope_parameters: Rope = field.rope()


class Attention(Module):
    """Causal self-attention with rotary embeddings: n query heads over n_kv heads of keys and values. (N, C) -> (N, C)

    Args:
        width: C.
        heads: the heads.
        layer: the layer's number.
        bias: whether queries, keys and values have a bias.
        out_bias: whether the output has one.
        scale: the factor of the scores; None is 1/√D.
        window: the number of positions that a row sees; None is all.
        softcap: scores become softcap · tanh(score / softcap); None leaves them.
        rotates: whether queries and keys are rotated.
    """

    def __init__(
        self,
        width: int,
        heads: Heads,
        layer: int,
        *,
        bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        rotates: bool = True,
    ) -> None:
        self.heads, self.layer, self.rotates = heads, layer, rotates
        self.window, self.softcap = window, softcap
        self.scale = 1 / math.sqrt(heads.dim) if scale is None else scale
        self.add_projections(width, bias)
        self.o_proj = Linear(heads.n * heads.dim, width, bias=out_bias)

    def add_projections(self, width: int, bias: bool) -> None:
        """Adds the layers that `project` calls; other architectures override both."""
        self.q_proj = Linear(width, self.heads.n * self.heads.dim, bias=bias)
        self.k_proj = Linear(width, self.heads.n_kv * self.heads.dim, bias=bias)
        self.v_proj = Linear(width, self.heads.n_kv * self.heads.dim, bias=bias)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """(N, C) -> queries (N, H·D), keys and values (N, K·D), before rotation."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        ops, heads = self.ops, self.heads
        q, k, v = self.project(x)
        if self.rotates:
            q, k = ops.rotary(q, angles, heads.n), ops.rotary(k, angles, heads.n_kv)
        x = ops.attention(
            q,
            k,
            v,
            batch,
            layer=self.layer,
            n_head=heads.n,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )
        return self.o_proj(x)


class MLP(Module):
    """Gated linear unit: down(act(gate(x)) · up(x)). Shazeer, arXiv:2002.05202. (N, C) -> (N, C)"""

    def __init__(self, width: int, n_inner: int, activation: str, *, bias: bool = False) -> None:
        self.gate_proj = Linear(width, n_inner, bias=bias)
        self.up_proj = Linear(width, n_inner, bias=bias)
        self.down_proj = Linear(n_inner, width, bias=bias)
        self.act_fn = Activation(ACTIVATION_NAMES[activation])

    def __call__(self, x: Array) -> Array:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual stream. (N, C) -> (N, C)

    Other architectures override `norm`, `attention` and `feed_forward`, which build its parts.
    """

    def __init__(self, config: Any, layer: int) -> None:
        self.input_layernorm = self.norm(config)
        self.self_attn = self.attention(config, layer)
        self.post_attention_layernorm = self.norm(config)
        self.mlp = self.feed_forward(config)

    def norm(self, config: Any) -> Module:
        """A norm of the residual stream; the model's last one is made by its first layer."""
        return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def attention(self, config: Any, layer: int) -> Attention:
        bias = config.attention_bias
        window = config.windows[layer]
        return Attention(config.hidden_size, config.heads, layer, bias=bias, out_bias=bias, window=window)

    def feed_forward(self, config: Any) -> Module:
        return MLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=config.mlp_bias)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        x = x + self.self_attn(self.input_layernorm(x), angles, batch)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(PretrainedModel):
    """Token embeddings, decoder layers, a norm, and the head. A batch of N rows -> (R, V) logits

    Other architectures set `decoder_layer`, and override `embed` and `readout`.
    """

    config_type: ClassVar = LlamaConfig
    rules: ClassVar = NameRules(
        prefixes=("model.",),
        buffers=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        heads=OTHER_HEADS,
        tied={"lm_head.weight": "embed_tokens.weight"},
    )
    decoder_layer: ClassVar[type[Any]] = DecoderLayer
    """The class of `layers`, called with the config and the layer's number."""

    def __init__(self, config: Any) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList(self.decoder_layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = self.layers[0].norm(config)
        rope = config.rope_parameters
        self.rotary_emb = Rotary(partial(rope.frequencies, config.context_length), rope.scale)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, batch: Batch) -> Array:
        x = self.embed(batch.ids)  # (N, C)
        angles = self.rotary_emb(batch.positions)  # (N, r)
        for layer in self.layers:
            x = layer(x, angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits

    def embed(self, ids: NDArray[np.int32]) -> Array:
        """Token ids -> the residual stream. (N,) -> (N, C)"""
        return self.embed_tokens(ids)

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits. (R, C) -> (R, V)"""
        return self.lm_head(self.norm(x))


ARCHITECTURE = Llama
