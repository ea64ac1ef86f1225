"""Qwen 2 and 2.5: a Llama whose queries, keys and values have biases.

Yang et al., arXiv:2407.10671, and the Qwen2.5 report, arXiv:2412.15115. Names and arithmetic are those of transformers'
modeling_qwen2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


def slides(layer: int, read: Mapping[str, Any]) -> bool:
    """Whether a layer has the window that `use_sliding_window` switches on: the first layers have full attention."""
    return bool(layer >= read["max_window_layers"])


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """A Llama's sizes, and a window that applies only with `use_sliding_window`, from `max_window_layers` on."""

    model_type: ClassVar = "qwen2"
    unsupported: ClassVar = {"use_mrope": (False,)}

    num_key_value_heads: int = field.kv_heads(default=32)
    max_window_layers: int = field.count(28)
    sliding_window: tuple[int | None, ...] = field.windows(4096, slides=slides, switch="use_sliding_window")


class Qwen2DecoderLayer(DecoderLayer):
    """A Llama's layer with biases of queries, keys and values. (N, C) -> (N, C)"""

    def attention(self, config: Qwen2Config, layer: int) -> Attention:
        return Attention(config.hidden_size, config.heads, layer, bias=True, window=config.windows[layer])


class Qwen2(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = Qwen2Config
    decoder_layer: ClassVar = Qwen2DecoderLayer


ARCHITECTURE = Qwen2
