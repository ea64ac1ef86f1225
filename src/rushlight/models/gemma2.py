"""Gemma 2: Gemma with norms around attention and MLP, windows in every other layer, and capped scores and logits.

Gemma Team, arXiv:2408.00118. Names and arithmetic are those of transformers' modeling_gemma2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import field
from rushlight.models.gemma import Gemma, GemmaConfig, GemmaDecoderLayer
from rushlight.models.llama import MLP, Attention

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """The sizes and switches of a Gemma 2, each under its key in config.json."""

    model_type: ClassVar = "gemma2"
    benign_keys: ClassVar = frozenset({"cache_implementation"})
    unsupported: ClassVar = {"use_bidirectional_attention": (False,)}

    num_key_value_heads: int = field.kv_heads(default=4)
    hidden_activation: str = field.activation("gelu_pytorch_tanh")
    """`hidden_act`, which the files also have, is not used."""
    query_pre_attn_scalar: float = field.positive(256.0)
    """Scores are divided by its square root."""
    sliding_window: tuple[int | None, ...] = field.windows(4096, slides=lambda layer, _: layer % 2 == 0)
    attn_logit_softcapping: float | None = field.optional(50.0)
    final_logit_softcapping: float | None = field.optional(30.0)


class Gemma2DecoderLayer(GemmaDecoderLayer):
    """Attention, then MLP, each between two norms and added to the residual stream. (N, C) -> (N, C)"""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = self.norm(config)
        self.post_feedforward_layernorm = self.norm(config)

    def attention(self, config: Any, layer: int) -> Attention:
        return Attention(
            config.hidden_size,
            config.heads,
            layer,
            bias=config.attention_bias,
            out_bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            window=config.windows[layer],
            softcap=config.attn_logit_softcapping,
        )

    def feed_forward(self, config: Any) -> MLP:
        return MLP(config.hidden_size, config.intermediate_size, config.hidden_activation)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, batch))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(Gemma):
    """Scaled token embeddings, decoder layers, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar[Any] = Gemma2Config
    decoder_layer: ClassVar[type[Any]] = Gemma2DecoderLayer

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.softcap = config.final_logit_softcapping

    def readout(self, x: Array) -> Array:
        """The residual stream -> logits, softcap · tanh(logits / softcap) if there is one. (R, C) -> (R, V)"""
        logits = super().readout(x)
        return self.ops.activation(logits * (1 / self.softcap), "tanh") * self.softcap if self.softcap else logits


ARCHITECTURE = Gemma2
