"""Phi-3, 3.5 and 4, the text models: a Llama with one projection for queries, keys and values, and one for gate and up.

Abdin et al., arXiv:2404.14219 and arXiv:2412.08905. Names and arithmetic are those of transformers' modeling_phi3.py.

The models for 128,000 positions have LongRoPE: one list of factors for contexts up to the original 4,096 positions, and
one for longer ones. The context length selects it, as in llama.cpp and vLLM; unless the caller asks for more, it is the
original one. transformers changes the list when a sequence becomes longer, and computes its keys again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import ACTIVATION_NAMES, Rope, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig
from rushlight.nn import Activation, Linear, Module

if TYPE_CHECKING:
    from rushlight.nn import Array


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """A Llama's sizes, the window of all layers, and LongRoPE, which early files call su or yarn."""

    model_type: ClassVar = "phi3"
    unsupported: ClassVar = {"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,)}

    rms_norm_eps: float = field.positive(1e-5)
    rope_parameters: Rope = field.rope(fraction=1.0, original=4096, aliases={"su": "longrope", "yarn": "longrope"})
    sliding_window: tuple[int | None, ...] = field.windows()


class Phi3Attention(Attention):
    """A Llama's attention whose queries, keys and values are one product: first all queries. (N, C) -> (N, C)"""

    def add_projections(self, width: int, bias: bool) -> None:
        n, n_kv, dim = self.heads
        self.sizes = n * dim, n_kv * dim, n_kv * dim
        self.qkv_proj = Linear(width, sum(self.sizes), bias=bias)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = self.ops.split(self.qkv_proj(x), self.sizes)
        return q, k, v


class Phi3MLP(Module):
    """Gated linear unit whose gate and up are one product: first the gate. (N, C) -> (N, C)"""

    def __init__(self, width: int, n_inner: int, activation: str) -> None:
        self.gate_up_proj = Linear(width, 2 * n_inner, bias=False)
        self.down_proj = Linear(n_inner, width, bias=False)
        self.activation_fn = Activation(ACTIVATION_NAMES[activation])

    def __call__(self, x: Array) -> Array:
        gate, up = self.ops.split(self.gate_up_proj(x), 2)
        return self.down_proj(self.activation_fn(gate) * up)


class Phi3DecoderLayer(DecoderLayer):
    """A Llama's layer of these parts. (N, C) -> (N, C)"""

    def attention(self, config: Phi3Config, layer: int) -> Attention:
        return Phi3Attention(config.hidden_size, config.heads, layer, window=config.windows[layer])

    def feed_forward(self, config: Any) -> Module:
        return Phi3MLP(config.hidden_size, config.intermediate_size, config.hidden_act)


class Phi3(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Phi3Config
    decoder_layer: ClassVar = Phi3DecoderLayer


ARCHITECTURE = Phi3
