"""StarCoder 2: a Llama with LayerNorm, biases, a sliding window and an MLP without a gate.

Lozhkov et al., arXiv:2402.19173. Names and arithmetic are those of transformers' modeling_starcoder2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rushlight.models import ACTIVATION_NAMES, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig
from rushlight.nn import Activation, LayerNorm, Linear, Module

if TYPE_CHECKING:
    from rushlight.nn import Array


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(LlamaConfig):
    """A Llama's sizes, with the epsilon of LayerNorm, one switch for all biases, and the window of all layers."""

    model_type: ClassVar = "starcoder2"
    benign_keys: ClassVar = frozenset({"activation_function", "layer_norm_epsilon"})  # which transformers ignores
    unsupported: ClassVar = {
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "scale_attn_weights": (True,),
        "rms_norm_eps": (),
    }

    tie_word_embeddings: bool = field.flag(True)
    num_key_value_heads: int = field.kv_heads(default=2)
    hidden_act: str = field.activation("gelu_pytorch_tanh")
    norm_epsilon: float = field.positive(1e-5)
    use_bias: bool = field.flag(True)
    sliding_window: tuple[int | None, ...] = field.windows()


class Starcoder2MLP(Module):
    """proj(act(fc(x))). (N, C) -> (N, C)"""

    def __init__(self, width: int, n_inner: int, activation: str, *, bias: bool) -> None:
        self.c_fc = Linear(width, n_inner, bias=bias)
        self.c_proj = Linear(n_inner, width, bias=bias)
        self.act = Activation(ACTIVATION_NAMES[activation])

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class Starcoder2DecoderLayer(DecoderLayer):
    """A Llama's layer with LayerNorm and this MLP. (N, C) -> (N, C)"""

    def norm(self, config: Starcoder2Config) -> Module:
        return LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def attention(self, config: Starcoder2Config, layer: int) -> Attention:
        bias, window = config.use_bias, config.windows[layer]
        return Attention(config.hidden_size, config.heads, layer, bias=bias, out_bias=bias, window=window)

    def feed_forward(self, config: Starcoder2Config) -> Module:
        return Starcoder2MLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=config.use_bias)


class Starcoder2(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Starcoder2Config
    decoder_layer: ClassVar = Starcoder2DecoderLayer


ARCHITECTURE = Starcoder2
