"""Mistral 7B, Mistral Nemo and Ministral: a Llama whose layers may have a sliding window.

Jiang et al., arXiv:2310.06825. Names and arithmetic are those of transformers' modeling_mistral.py; of `layer_types`,
which Ministral has, those of modeling_ministral.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rushlight.models import field
from rushlight.models.llama import Llama, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """A Llama's sizes, and the window: 4,096 positions if config.json does not name it, none if it is null."""

    model_type: ClassVar = "mistral"

    num_key_value_heads: int = field.kv_heads(default=8)
    sliding_window: tuple[int | None, ...] = field.windows(4096)


class Mistral(Llama):
    """A Llama with windows. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar = MistralConfig


ARCHITECTURE = Mistral
