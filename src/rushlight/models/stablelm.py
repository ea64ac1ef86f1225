"""StableLM 3B and StableLM 2: a Llama with LayerNorm that rotates a quarter of each head.

In StableLM 2 12B, each head of queries and keys has a norm of its own, and attention and MLP read the same norm.
Bellagente et al., arXiv:2402.17834. Names and arithmetic are those of transformers' modeling_stablelm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import Heads, Rope, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig
from rushlight.nn import LayerNorm, Module, ModuleList

if TYPE_CHECKING:
    from rushlight.nn import Array, Batch


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(LlamaConfig):
    """A Llama's sizes, with the epsilon of LayerNorm, and switches for biases, norms of heads and parallel branches."""

    model_type: ClassVar = "stablelm"
    unsupported: ClassVar = {"rms_norm_eps": ()}

    num_key_value_heads: int = field.kv_heads(default=32)
    rope_parameters: Rope = field.rope(fraction=0.25)
    layer_norm_eps: float = field.positive(1e-5)
    use_qkv_bias: bool = field.flag(False)
    qk_layernorm: bool = field.flag(False)
    use_parallel_residual: bool = field.flag(False)


class HeadNorms(Module):
    """A LayerNorm of each of n heads of `width` channels, without bias. (N, n·D) -> (N, n·D)"""

    def __init__(self, n: int, width: int, *, eps: float) -> None:
        self.norms = ModuleList(LayerNorm(width, eps=eps, bias=False) for _ in range(n))

    def __call__(self, x: Array) -> Array:
        heads = self.ops.split(x, len(self.norms))
        return self.ops.join([norm(head) for norm, head in zip(self.norms, heads, strict=True)])


class NormedHeadsAttention(Attention):
    """A Llama's attention over normalised queries and keys. (N, C) -> (N, C)"""

    def __init__(self, width: int, heads: Heads, layer: int, *, eps: float, bias: bool) -> None:
        super().__init__(width, heads, layer, bias=bias)
        self.q_layernorm = HeadNorms(heads.n, heads.dim, eps=eps)
        self.k_layernorm = HeadNorms(heads.n_kv, heads.dim, eps=eps)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = super().project(x)
        return self.q_layernorm(q), self.k_layernorm(k), v


class StableLmDecoderLayer(DecoderLayer):
    """A Llama's layer with LayerNorm; of parallel branches, both read the first norm. (N, C) -> (N, C)"""

    def __init__(self, config: StableLmConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.parallel = config.use_parallel_residual
        if self.parallel:
            del self.post_attention_layernorm

    def norm(self, config: StableLmConfig) -> Module:
        return LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attention(self, config: StableLmConfig, layer: int) -> Attention:
        width, heads, bias = config.hidden_size, config.heads, config.use_qkv_bias
        if config.qk_layernorm:
            return NormedHeadsAttention(width, heads, layer, eps=config.layer_norm_eps, bias=bias)
        return Attention(width, heads, layer, bias=bias)

    def __call__(self, x: Array, angles: Array, batch: Batch) -> Array:
        if not self.parallel:
            return super().__call__(x, angles, batch)
        normed = self.input_layernorm(x)
        return x + self.self_attn(normed, angles, batch) + self.mlp(normed)


class StableLm(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = StableLmConfig
    decoder_layer: ClassVar = StableLmDecoderLayer


ARCHITECTURE = StableLm
