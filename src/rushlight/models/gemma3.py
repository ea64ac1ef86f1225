"""The language model of a Gemma 3 that also reads images, whose vision tower and projector are left out.

Gemma Team, arXiv:2503.19786. The config is the `text_config` of config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rushlight.models import Fields
from rushlight.models.gemma3_text import Gemma3Text, Gemma3TextConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

OF_THE_FILE = ("tie_word_embeddings", "bos_token_id", "eos_token_id")
"""Keys of config.json itself, which precede those of `text_config`, as in transformers."""


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma3TextConfig):
    """The sizes and switches in `text_config`."""

    model_type: ClassVar = "gemma3"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> Self:
        fields = Fields(values, file)
        text = fields.child("text_config")
        text.choice("model_type", (Gemma3TextConfig.model_type,), Gemma3TextConfig.model_type)
        if not fields.has("text_config"):
            fields.problem("text_config is missing, expected an object")
        fields.finish(benign=values.keys())
        shared = {key: values[key] for key in OF_THE_FILE if fields.has(key)}
        return super().from_json(values["text_config"] | shared | {"model_type": cls.model_type}, file=file)


class Gemma3(Gemma3Text):
    """Scaled token embeddings, decoder layers, a norm, and the head. A batch of N rows -> (R, V) logits"""

    config_type: ClassVar[Any] = Gemma3Config
    rules: ClassVar = replace(
        Gemma3Text.rules,
        prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
        heads=(r"(model\.)?(vision_tower|multi_modal_projector)\..*", *Gemma3Text.rules.heads),
    )


ARCHITECTURE = Gemma3
