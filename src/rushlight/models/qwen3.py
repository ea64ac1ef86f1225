"""Qwen 3, the dense models: a Llama that normalises every head of its queries and keys before they are rotated.

Yang et al., arXiv:2505.09388. Names and arithmetic are those of transformers' modeling_qwen3.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import Heads, field
from rushlight.models.llama import Attention, DecoderLayer, Llama
from rushlight.models.qwen2 import Qwen2Config
from rushlight.nn import RMSNorm

if TYPE_CHECKING:
    from rushlight.nn import Array


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Qwen 2's fields; a head has 128 channels if config.json does not name them, whatever the width."""

    model_type: ClassVar = "qwen3"

    head_dim: int = field.head_dim(default=128)


class Qwen3Attention(Attention):
    """A Llama's attention over normalised queries and keys. (N, C) -> (N, C)"""

    def __init__(self, width: int, heads: Heads, layer: int, *, eps: float, bias: bool, window: int | None) -> None:
        super().__init__(width, heads, layer, bias=bias, out_bias=bias, window=window)
        self.q_norm = RMSNorm(heads.dim, eps=eps)
        self.k_norm = RMSNorm(heads.dim, eps=eps)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Qwen3DecoderLayer(DecoderLayer):
    """A Llama's layer with this attention. (N, C) -> (N, C)"""

    def attention(self, config: Qwen3Config, layer: int) -> Attention:
        return Qwen3Attention(
            config.hidden_size,
            config.heads,
            layer,
            eps=config.rms_norm_eps,
            bias=config.attention_bias,
            window=config.windows[layer],
        )


class Qwen3(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Qwen3Config
    decoder_layer: ClassVar = Qwen3DecoderLayer


ARCHITECTURE = Qwen3
