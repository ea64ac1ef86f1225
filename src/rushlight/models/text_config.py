"""The config of a language model: its common fields, and reading all fields by their declarations."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from rushlight.errors import ConfigError, PortError
from rushlight.models import field
from rushlight.models.generation_config import GENERATION_KEYS
from rushlight.models.schema import BENIGN_KEYS, Fields
from rushlight.nn import KVShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.models.rope import Rope
    from rushlight.nn import Tensor

__all__ = ["Heads", "TextConfig"]


class Heads(NamedTuple):
    """H query heads over K heads of keys and values, each of D channels."""

    n: int
    n_kv: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The sizes and switches of a language model, each under its key in config.json.

    A subclass declares its fields with `rushlight.models.field`, among them `positions`, `width`, `layers` and `heads`,
    from which the KV cache's shape and the context length follow.
    """

    model_type: ClassVar[str] = ""
    """The architecture's `model_type` in config.json; "" accepts any."""
    benign_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that do not change the logits, in addition to those shared by all architectures."""
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Keys that would change the arithmetic and are not supported -> their neutral values."""

    vocab_size: int = field.size(role="vocabulary")
    tie_word_embeddings: bool = field.flag(True)
    bos_token_id: int | None = field.token_id()
    eos_token_id: tuple[int, ...] = field.token_ids()

    context: int | None = None
    """The caller's limit of the context length; None is the model's own."""

    @property
    def context_length(self) -> int:
        """The most positions that a sequence can have."""
        return self.context or self.default_context_length

    @property
    def default_context_length(self) -> int:
        """The context length unless the caller limits it: the longest, or with LongRoPE the original one."""
        key = self.key_of("rope")
        rope: Rope | None = getattr(self, key) if key else None
        return rope.default_context_length(self.max_context_length) if rope else self.max_context_length

    @property
    def max_context_length(self) -> int:
        """The most positions that the model can have at all."""
        return self._size("positions")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer: how many positions a row sees; None is all."""
        key = self.key_of("windows")
        windows: tuple[int | None, ...] = getattr(self, key) if key else (None,) * self._size("layers")
        return windows

    @property
    def heads(self) -> Heads:
        """The heads of attention."""
        n = self._size("heads")
        return Heads(n, self._size("kv_heads") or n, self._size("head_dim") or self._size("width") // n)

    @property
    def kv_shape(self) -> KVShape:
        """The shape of the keys and values of one position, with the windows that are shorter than the context."""
        length = self.context_length
        windows = tuple(None if window is None or window >= length else window for window in self.windows)
        return KVShape(self._size("layers"), self.heads.n_kv, self.heads.dim, windows if any(windows) else ())

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, file: str | None = None) -> Self:
        """Reads a config.json.

        It must have all sizes, since a wrong number of heads would pass every check of shapes; other fields default as
        in transformers. A key that changes the arithmetic is honoured or refused; other unknown keys are logged.

        Raises:
            ConfigError: fields are missing, mistyped, out of range or not supported. The message lists them all.
            PortError: the class lacks a declaration that a language model needs, or has a field without one.
        """
        if missing := [role for role in ("positions", "width", "layers", "heads") if not cls.key_of(role)]:
            raise PortError(
                f"not a language model: {cls.__name__} declares no {', '.join(missing)}",
                remedy=f"declare a field of the config as rushlight.models.field.{missing[0]}()",
            )
        declared = field.declared(cls)
        required = [each.name for each in dataclasses.fields(cls) if each.default is each.default_factory is MISSING]
        if undeclared := [name for name in required if name not in declared]:
            raise PortError(
                f"{cls.__name__} does not state how to read {', '.join(undeclared)} from config.json",
                remedy=f"declare each field with rushlight.models.field, such as {undeclared[0]}: int = field.size()",
            )
        fields = Fields(values, file)
        if cls.model_type:
            fields.choice("model_type", (cls.model_type,), cls.model_type)
        read: dict[str, Any] = {}
        for name, declaration in declared.items():
            read[name] = declaration.read(fields, name, read)
        for key, neutral in {"quantization_config": (), **cls.unsupported}.items():
            fields.neutral(key, *neutral)
        cls._check_heads(fields, read)
        fields.finish(BENIGN_KEYS | GENERATION_KEYS | cls.benign_keys)
        return cls(**read)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, file: str | None = None) -> Self:  # noqa: ARG003
        """The config of a checkpoint without a config.json, for architectures that override this.

        Raises:
            ConfigError: always, since head counts and epsilons cannot be inferred from shapes.
        """
        raise cls.without_config("", file)

    @classmethod
    def infer_sizes(cls, shapes: field.Shapes) -> dict[str, int]:
        """The fields that can be inferred from a checkpoint's names and shapes.

        Args:
            shapes: shapes by tensor name, without prefixes such as `transformer.`.
        """
        inferred = {name: each.infer(shapes) for name, each in field.declared(cls).items() if each.infer}
        return {name: value for name, value in inferred.items() if value}

    @staticmethod
    def without_config(why: str, file: str | None) -> ConfigError:
        """The error for a checkpoint without a config.json whose config cannot be inferred."""
        problem = f"there is no config.json, and {why}" if why else "there is no config.json"
        return ConfigError(problem, file=file, remedy="put the model's config.json next to the weights")

    def __str__(self) -> str:
        keys = [key for role in ("layers", "width", "heads") if (key := self.key_of(role))]
        return ", ".join(f"{key} {getattr(self, key)}" for key in keys)

    @classmethod
    def key_of(cls, role: str) -> str:
        """The field with a role; "" if there is none."""
        return next((name for name, each in field.declared(cls).items() if each.role == role), "")

    def _size(self, role: str) -> int:
        """The value of the field with a role; 0 if there is none."""
        key = self.key_of(role)
        value: int = getattr(self, key) if key else 0
        return value

    @classmethod
    def _check_heads(cls, fields: Fields, read: Mapping[str, Any]) -> None:
        """Adds a problem if the heads do not divide the width, or the key/value heads do not divide the heads."""
        divisors = [("kv_heads", "heads")] if cls.key_of("head_dim") else [("heads", "width"), ("kv_heads", "heads")]
        for divisor, of in ((cls.key_of(a), cls.key_of(b)) for a, b in divisors):
            if fields.is_valid and divisor and of and read[of] % read[divisor]:
                fields.problem(f"{divisor} is {read[divisor]}, which does not divide {of} {read[of]}")
