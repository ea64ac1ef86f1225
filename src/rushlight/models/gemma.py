"""Gemma: a Llama with scaled embeddings, norms that store their gain minus 1, and a GELU gate.

Gemma Team, arXiv:2403.08295. Names and arithmetic are those of transformers' modeling_gemma.py, except that √C, the
factor of the embeddings, is not rounded to the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from rushlight.models import field
from rushlight.models.llama import DecoderLayer, Llama, LlamaConfig
from rushlight.nn import Embedding, RMSNorm


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """The sizes and switches of a Gemma, each under its key in config.json."""

    model_type: ClassVar = "gemma"
    unsupported: ClassVar = {
        "use_bidirectional_attention": (False,),
        "hidden_activation": ("gelu_pytorch_tanh",),  # of some versions; the others read hidden_act
    }

    tie_word_embeddings: bool = field.flag(True)
    num_key_value_heads: int = field.kv_heads(default=16)
    head_dim: int = field.head_dim(default=256)
    hidden_act: str = field.activation("gelu_pytorch_tanh", gelu="gelu_pytorch_tanh")


class GemmaDecoderLayer(DecoderLayer):
    """A Llama's layer whose norms multiply by 1 + weight. (N, C) -> (N, C)"""

    def norm(self, config: Any) -> RMSNorm:
        return RMSNorm(config.hidden_size, eps=config.rms_norm_eps, offset=1.0)


class Gemma(Llama):
    """Scaled token embeddings, decoder layers, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar[Any] = GemmaConfig
    decoder_layer: ClassVar[type[Any]] = GemmaDecoderLayer

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scale=math.sqrt(config.hidden_size))


ARCHITECTURE = Gemma
