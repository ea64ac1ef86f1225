"""StableLM 3B, StableLM 2 1.6B and Zephyr: a Llama with LayerNorm that rotates a quarter of each head.

Bellagente et al., arXiv:2402.17834. Names and arithmetic are those of transformers' modeling_stablelm.py. StableLM 2
12B, whose heads have norms of their own, is not supported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rushlight.models import Rope, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig
from rushlight.nn import LayerNorm, Module


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(LlamaConfig):
    """A Llama's sizes, with the epsilon of LayerNorm, and a switch for biases of queries, keys and values."""

    model_type: ClassVar = "stablelm"
    unsupported: ClassVar = {"qk_layernorm": (False,), "use_parallel_residual": (False,), "rms_norm_eps": ()}

    num_key_value_heads: int = field.kv_heads(default=32)
    rope_parameters: Rope = field.rope(fraction=0.25)
    layer_norm_eps: float = field.positive(1e-5)
    use_qkv_bias: bool = field.flag(False)


class StableLmDecoderLayer(DecoderLayer):
    """A Llama's layer with LayerNorm. (N, C) -> (N, C)"""

    def norm(self, config: StableLmConfig) -> Module:
        return LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attention(self, config: StableLmConfig, layer: int) -> Attention:
        return Attention(config.hidden_size, config.heads, layer, bias=config.use_qkv_bias)


class StableLm(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = StableLmConfig
    decoder_layer: ClassVar = StableLmDecoderLayer


ARCHITECTURE = StableLm
