"""The base class of models: a module tree with its config, and the names of tensors in its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from rushlight.nn import Module, NameRules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.nn import Tensor

__all__ = ["GPT2_VOCAB_SIZE", "OTHER_HEADS", "Architecture", "Config", "Origin", "PretrainedModel"]

GPT2_VOCAB_SIZE = 50257
"""The size of GPT-2's vocabulary, which several architectures share."""
OTHER_HEADS = (r"(\w+_head|score|classifier|qa_outputs)\..*",)
"""Names of heads for other tasks: of transformers' classes, and of reinforcement learning, such as v_head."""


class Config(Protocol):
    """The config of any model; that of a language model derives from `TextConfig`.

    `tie_word_embeddings`, if a config has it, states whether the heads that the model's rules name are tied.
    """

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> Self:
        """Reads a config.json. Raises ConfigError, which lists every problem in it."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> Self:
        """Infers the config of a checkpoint without a config.json. Raises ConfigError if the tensors do not show it."""
        ...


class Origin(NamedTuple):
    """The program that saved a checkpoint, inferred from names and shapes.

    Attributes:
        saved_by: a description of the program.
        unknown_key: a key of config.json that the tensors do not show and that may differ between programs, or "".
        unknown_title, unknown_detail, unknown_fix: the note of `rushlight check` if config.json lacks this key.
    """

    saved_by: str
    unknown_key: str = ""
    unknown_title: str = ""
    unknown_detail: str = ""
    unknown_fix: str = ""


class PretrainedModel(Module):
    """A model whose weights come from a checkpoint; its attribute paths are tensor names.

    A subclass sets `config_type`, builds its layers in `__init__(self, config)` and computes in `__call__`. With a
    config that derives from `TextConfig` it is a language model, which `rushlight.load` loads; any other model is
    loaded with `rushlight.load_module` and called.
    """

    config_type: ClassVar[type[Config]]
    """The settings that the model is built from."""
    rules: ClassVar[NameRules] = NameRules()
    """How its tensor names vary between checkpoints."""
    model_type: ClassVar[str] = ""
    """The `model_type` in config.json, taken from the config."""
    landmarks: ClassVar[frozenset[str]] = frozenset()
    """Tensors in all its checkpoints, for architectures that can be recognised without a config.json."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        config_type = getattr(cls, "config_type", None)
        cls.model_type = getattr(config_type, "model_type", "")

    def __init__(self, config: Any) -> None:
        """Builds the layers with empty slots."""

    @classmethod
    def recognises(cls, tensors: Mapping[str, Tensor]) -> bool:  # noqa: ARG003
        """Whether a checkpoint without a config.json belongs to this architecture.

        True only for GPT-2: other architectures share tensor names, and head counts, epsilons and rotary frequencies do
        not follow from shapes.
        """
        return False

    @classmethod
    def describe_source(cls, tensors: Mapping[str, Tensor]) -> Origin | None:  # noqa: ARG003
        """The program that saved a checkpoint of this architecture; None if it cannot be inferred."""
        return None

    @classmethod
    def fallback_tokenizer(cls, vocab_size: int) -> str | None:
        """The tokenizer for a checkpoint without tokenizer files: "gpt2", which the package includes, or None.

        A vocabulary of exactly GPT-2's size is assumed to be GPT-2's, which GPT-Neo and many small models also use.
        """
        return "gpt2" if vocab_size == GPT2_VOCAB_SIZE else None


Architecture = type[PretrainedModel]
"""An architecture is the class of its models."""
