"""Gemma 3's language model: Gemma 2 without softcap of scores, with norms of queries and keys, and two rotary bases.

Gemma Team, arXiv:2503.19786. Names and arithmetic are those of transformers' modeling_gemma3.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import Rope, field
from rushlight.models.gemma import GemmaConfig
from rushlight.models.gemma2 import Gemma2, Gemma2DecoderLayer
from rushlight.models.llama import Attention
from rushlight.nn import RMSNorm, Rotary

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class Gemma3TextConfig(GemmaConfig):
    """The sizes and switches of a Gemma 3, each under its key in config.json; published files leave many out."""

    model_type: ClassVar = "gemma3_text"
    benign_keys: ClassVar = frozenset({"cache_implementation", "_sliding_window_pattern"})
    unsupported: ClassVar = {
        "use_bidirectional_attention": (False,),
        "attn_logit_softcapping": (),  # transformers reads and ignores it
    }

    vocab_size: int = field.size(262_208, role="vocabulary")
    num_attention_heads: int = field.heads(default=8)
    num_key_value_heads: int = field.kv_heads(default=4)
    max_position_embeddings: int = field.positions(default=131_072)
    hidden_activation: str = field.activation("gelu_pytorch_tanh")
    query_pre_attn_scalar: float = field.positive(256.0)
    """Scores are divided by its square root."""
    sliding_window_pattern: int = field.size(6)
    """Without layer_types, the last of each group of that many layers sees all positions."""
    sliding_window: tuple[int | None, ...] = field.windows(
        4096, optional=False, slides=lambda layer, read: (layer + 1) % read["sliding_window_pattern"] != 0
    )
    rope_parameters: Rope = field.rope(layer_type="full_attention", theta=1e6)
    rope_local: Rope = field.rope(
        layer_type="sliding_attention", theta=1e4, theta_key="rope_local_base_freq", scaled=False
    )
    """The rotary embedding of the layers with a window."""
    final_logit_softcapping: float | None = field.optional()


class Gemma3Attention(Attention):
    """Attention whose queries and keys are normalised, head by head, before they are rotated. (N, C) -> (N, C)"""

    def __init__(self, config: Gemma3TextConfig, layer: int) -> None:
        super().__init__(
            config.hidden_size,
            config.heads,
            layer,
            bias=config.attention_bias,
            out_bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            window=config.windows[layer],
        )
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, offset=1.0)
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps, offset=1.0)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    """Attention, then MLP, each between two norms and added to the residual stream. (N, C) -> (N, C)"""

    def attention(self, config: Any, layer: int) -> Attention:
        return Gemma3Attention(config, layer)


class Gemma3Text(Gemma2):
    """Scaled token embeddings, decoder layers, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar[Any] = Gemma3TextConfig
    decoder_layer: ClassVar[type[Any]] = Gemma3DecoderLayer

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__(config)
        local = config.rope_local
        self.rotary_emb_local = Rotary(partial(local.frequencies, config.context_length), local.scale)

    def __call__(self, batch: Batch) -> Array:
        x = self.embed(batch.ids)  # (N, C)
        angles, local = self.rotary_emb(batch.positions), self.rotary_emb_local(batch.positions)  # 2 × (N, D)
        for layer in self.layers:
            x = layer(x, local if layer.self_attn.window else angles, batch)
        return self.readout(self.ops.take(x, batch.logit_rows))  # (R, C): only the rows that need logits


ARCHITECTURE = Gemma3Text
