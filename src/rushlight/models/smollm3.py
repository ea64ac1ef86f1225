"""SmolLM3: a Llama that rotates queries and keys in three layers of four only.

Bakouch et al., 2025, https://huggingface.co/blog/smollm3; layers without positions: Yang et al., arXiv:2501.18795.
Names and arithmetic are those of transformers' modeling_smollm3.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rushlight.models import Rope, field
from rushlight.models.llama import Attention, DecoderLayer, Llama, LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.models import Fields


def _rotating_layers(fields: Fields, name: str, read: Mapping[str, Any]) -> tuple[bool, ...]:
    n, interval = read["num_hidden_layers"], fields.size("no_rope_layer_interval", 4)
    return fields.flags(name, n) or tuple((layer + 1) % interval != 0 for layer in range(n))


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(LlamaConfig):
    """A Llama's sizes, and which layers rotate.

    In `no_rope_layers`, 1 is a layer that rotates and 0 is one that does not, against what the name suggests.
    """

    model_type: ClassVar = "smollm3"
    benign_keys: ClassVar = frozenset({"max_window_layers"})  # of Qwen's code; SmolLM3's does not read it

    tie_word_embeddings: bool = field.flag(True)
    num_key_value_heads: int = field.kv_heads(default=4)
    rope_parameters: Rope = field.rope(theta=2e6)
    no_rope_layers: tuple[bool, ...] = field.computed(_rotating_layers)
    sliding_window: tuple[int | None, ...] = field.windows(
        slides=lambda layer, read: not read["no_rope_layers"][layer], switch="use_sliding_window"
    )


class SmolLM3DecoderLayer(DecoderLayer):
    """A Llama's layer that may not rotate. (N, C) -> (N, C)"""

    def attention(self, config: SmolLM3Config, layer: int) -> Attention:
        return Attention(
            config.hidden_size,
            config.heads,
            layer,
            bias=config.attention_bias,
            out_bias=config.attention_bias,
            window=config.windows[layer],
            rotates=config.no_rope_layers[layer],
        )


class SmolLM3(Llama):
    """A Llama of these layers. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = SmolLM3Config
    decoder_layer: ClassVar = SmolLM3DecoderLayer


ARCHITECTURE = SmolLM3
