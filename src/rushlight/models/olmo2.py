"""OLMo 2: a Llama that normalises what attention and MLP return, not what they read, and all queries and keys.

OLMo team, arXiv:2501.00656. Names and arithmetic are those of transformers' modeling_olmo2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import Heads, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig
from rushlight.nn import RMSNorm

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(LlamaConfig):
    """A Llama's sizes."""

    model_type: ClassVar = "olmo2"

    rms_norm_eps: float = field.positive(1e-5)


class Olmo2Attention(Attention):
    """A Llama's attention over queries and keys that are normalised over all heads. (N, C) -> (N, C)"""

    def __init__(self, width: int, heads: Heads, layer: int, *, eps: float, bias: bool) -> None:
        super().__init__(width, heads, layer, bias=bias, out_bias=bias)
        self.q_norm = RMSNorm(heads.n * heads.dim, eps=eps)
        self.k_norm = RMSNorm(heads.n_kv * heads.dim, eps=eps)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Olmo2DecoderLayer(DecoderLayer):
    """Post-norm transformer block: attention, then MLP, each normalised before it is added. (N, C) -> (N, C)"""

    def __init__(self, config: Olmo2Config, layer: int) -> None:
        self.self_attn = self.attention(config, layer)
        self.post_attention_layernorm = self.norm(config)
        self.mlp = self.feed_forward(config)
        self.post_feedforward_layernorm = self.norm(config)

    def attention(self, config: Olmo2Config, layer: int) -> Attention:
        eps, bias = config.rms_norm_eps, config.attention_bias
        return Olmo2Attention(config.hidden_size, config.heads, layer, eps=eps, bias=bias)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        x = x + self.post_attention_layernorm(self.self_attn(x, angles, batch))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Olmo2(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Olmo2Config
    decoder_layer: ClassVar = Olmo2DecoderLayer


ARCHITECTURE = Olmo2
