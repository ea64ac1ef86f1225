"""What an architecture is: a class of modules, and what it tells of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.backends.batch import KVShape
    from rushlight.backends.protocol import Tensor
    from rushlight.nn import Module, NameRules

__all__ = ["Architecture", "Config"]


class Config(Protocol):
    """The sizes and switches of a language model.

    A port of something else needs the two class methods, and `tie_word_embeddings` if its rules name a tied head.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def kv_shape(self) -> KVShape: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> tuple[int, ...]: ...

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> Self:
        """The config that a config.json describes. Raises ConfigError with everything that is wrong in it."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> Self:
        """The config of a checkpoint without a config.json. Raises ConfigError if its shapes do not tell."""
        ...


class Architecture(Protocol):
    """A class of modules whose attribute paths are tensor names.

    Attributes:
        model_type: the word in config.json.
        config_type: its config.
        rules: how its tensors' names vary.
        landmarks: names that every one of its checkpoints has, by which it is recognised.
        sizes: config field -> the axis of a tensor that shows it; or the stem of the numbered blocks, `h`, that it
            counts. From them `rushlight check` tells a config that is not the checkpoint's.
    """

    @property
    def model_type(self) -> str: ...
    @property
    def config_type(self) -> type[Config]: ...
    @property
    def rules(self) -> NameRules: ...
    @property
    def landmarks(self) -> frozenset[str]: ...
    @property
    def sizes(self) -> Mapping[str, tuple[str, int] | str]: ...

    def __call__(self, config: Any) -> Module:
        """The model with empty slots."""
        ...
