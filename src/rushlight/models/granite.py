"""Granite 3 and 4, the dense models: a Llama with four scalars, of embeddings, attention, branches and logits.

IBM, Granite 3.0 Language Models, 2024; the scalars are those of maximal update parametrization, Yang et al.,
arXiv:2203.03466. Names and arithmetic are those of transformers' modeling_granite.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(LlamaConfig):
    """A Llama's sizes, and the scalars. `attention_multiplier` is the factor of the scores, instead of 1/√D."""

    model_type: ClassVar = "granite"

    embedding_multiplier: float = field.positive(1.0)
    attention_multiplier: float = field.positive(1.0)
    residual_multiplier: float = field.positive(1.0)
    logits_scaling: float = field.positive(1.0)


class GraniteDecoderLayer(DecoderLayer):
    """A Llama's layer whose branches are scaled before they are added. (N, C) -> (N, C)"""

    def __init__(self, config: GraniteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = config.residual_multiplier

    def attention(self, config: GraniteConfig, layer: int) -> Attention:
        bias, scale = config.attention_bias, config.attention_multiplier
        return Attention(config.hidden_size, config.heads, layer, bias=bias, out_bias=bias, scale=scale)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        x = x + self.self_attn(self.input_layernorm(x), angles, batch) * self.scale
        return x + self.mlp(self.post_attention_layernorm(x)) * self.scale


class Granite(Llama):
    """A Llama of these layers, whose embeddings are multiplied and whose logits are divided. -> (R, V) logits"""

    config_type: ClassVar = GraniteConfig
    decoder_layer: ClassVar = GraniteDecoderLayer

    def __init__(self, config: GraniteConfig) -> None:
        super().__init__(config)
        self.embedding_multiplier, self.logits_scaling = config.embedding_multiplier, config.logits_scaling

    def embed(self, ids: NDArray[np.int32]) -> Array:
        return super().embed(ids) * self.embedding_multiplier

    def readout(self, x: Array) -> Array:
        return super().readout(x) * (1 / self.logits_scaling)


ARCHITECTURE = Granite
