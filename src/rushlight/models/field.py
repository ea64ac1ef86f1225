"""Declarations of config fields: one line states how to read and check a field, and to infer it from tensor shapes.

    @dataclass(frozen=True, kw_only=True)
    class Config(TextConfig):
        hidden_size: int = field.width(axis=("embed.weight", 1))
        num_hidden_layers: int = field.layers(blocks="layers")
        hidden_act: str = field.activation("silu")

`TextConfig.from_json` and `TextConfig.infer_sizes` use these declarations. A field's name is its key in config.json.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rushlight.models.rope import Rope, read_rope
from rushlight.models.schema import MAX_LAYERS, MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rushlight.models.schema import Fields

ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same formula with √(2/π) written out to ten digits
    "gelu": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
"""The name of an activation in config.json -> its name in `rushlight.nn.ACTIVATIONS`."""

Read = Callable[["Fields", str, Mapping[str, Any]], Any]
"""The fields of config.json, the name of a field, and the values read before it -> its value."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by tensor name, without prefixes such as `transformer.`."""

_KEY = "rushlight"
_NONE: Any = object()


class Declaration(NamedTuple):
    """How a field is read.

    Attributes:
        read: reads it from config.json.
        role: what `TextConfig` takes it for: vocabulary, positions, width, layers, heads, kv_heads, head_dim, windows
            or rope.
        infer: infers it from the shapes of a checkpoint; 0 if it cannot.
    """

    read: Read
    role: str = ""
    infer: Callable[[Shapes], int] | None = None


def declared(config_type: type) -> dict[str, Declaration]:
    """The declarations of a config class, by field, in order."""
    fields = dataclasses.fields(config_type)
    return {field.name: field.metadata[_KEY] for field in fields if _KEY in field.metadata}


def computed(read: Read, default: Any = _NONE, *, role: str = "", infer: Callable[[Shapes], int] | None = None) -> Any:
    """A field that `read(fields, name, read_before)` computes, such as rotary frequencies from several keys."""
    options = {} if default is _NONE else {"default": default}
    return dataclasses.field(metadata={_KEY: Declaration(read, role, infer)}, **options)


def size(
    default: int | Callable[[Mapping[str, Any]], int] | None = None,
    *,
    null: Callable[[Mapping[str, Any]], int] | None = None,
    axis: tuple[str, int] | None = None,
    blocks: str | None = None,
    infer: Callable[[Shapes], int] | None = None,
    older_key: str = "",
    aliases: Iterable[str] = (),
    at_most: int = MAX_SIZE,
    role: str = "",
) -> Any:
    """A positive integer.

    Args:
        default: its value if config.json has none, or a function of the values read before; None requires the key.
        null: its value if config.json has null, where that differs from a missing key: a function like `default`.
        axis: a tensor, and its axis that has this size.
        blocks: instead of `axis`, the name of the blocks that it counts: `h` for `h.0`, `h.1`, ...
        infer: instead of both, a function that infers it from all shapes; 0 if it cannot.
        older_key: the key to read if config.json lacks the field's name.
        aliases: other keys that may also have it, and must agree.
        at_most: the largest valid value.
        role: the size of a decoder that it is.
    """

    def read(fields: Fields, name: str, before: Mapping[str, Any]) -> int:
        key = older_key if fields.has(older_key) and not fields.has(name) else name
        absent = null if null and fields.is_null(name) else default
        fallback = absent(before) if callable(absent) else absent
        if fallback is not None and not fields.is_valid:
            fallback = min(max(fallback, 1), at_most)  # may derive from an invalid value, which is already reported
        value = fields.size(key, at_most=at_most) if fallback is None else fields.size(key, fallback, at_most=at_most)
        for alias in aliases:
            fields.alias(alias, name, value)
        return value

    if axis is not None:
        infer = _axis(*axis)
    elif blocks is not None:
        infer = _blocks(blocks)
    constant = default if isinstance(default, int) else _NONE
    return computed(read, constant, role=role, infer=infer)


def positions(**options: Any) -> Any:
    """The most positions of a sequence: `size`, as `TextConfig.context_length`."""
    return size(role="positions", **options)


def width(**options: Any) -> Any:
    """The channels of the residual stream, C: `size`."""
    return size(role="width", **options)


def layers(**options: Any) -> Any:
    """The number of layers that keep keys and values: `size`."""
    return size(role="layers", at_most=MAX_LAYERS, **options)


def heads(**options: Any) -> Any:
    """The query heads, H: `size`."""
    return size(role="heads", **options)


def kv_heads(**options: Any) -> Any:
    """The heads of keys and values, K, where they are fewer than the query heads, which null stands for: `size`."""
    return size(role="kv_heads", null=lambda read: read["num_attention_heads"], **options)


def head_dim(**options: Any) -> Any:
    """The channels of a head, D, where they are not width / heads: `size`."""
    return size(role="head_dim", **options)


def count(default: int) -> Any:
    """An integer of 0 or more."""
    return computed(lambda fields, name, _: fields.count(name, default), default)


def positive(default: float) -> Any:
    """A number above 0."""
    return computed(lambda fields, name, _: fields.positive(name, default), default)


def optional(default: float | None = None) -> Any:
    """A number above 0, or None, which null stands for even where there is a default."""

    def read(fields: Fields, name: str, _before: Mapping[str, Any]) -> float | None:
        is_none = fields.is_null(name) or (default is None and not fields.has(name))
        value = fields.positive(name, 1.0 if default is None else default)
        return None if is_none else value

    return computed(read, default)


def flag(default: bool) -> Any:
    """True or false."""
    return computed(lambda fields, name, _: fields.flag(name, default), default)


def choice(choices: Collection[str], default: str) -> Any:
    """One of several words."""
    return computed(lambda fields, name, _: fields.choice(name, choices, default), default)


def activation(default: str, *, gelu: str = "gelu") -> Any:
    """An activation by its name in config.json, a key of ACTIVATION_NAMES.

    Args:
        default: its name if config.json has none.
        gelu: what the architecture means by "gelu".
    """

    def read(fields: Fields, name: str, _before: Mapping[str, Any]) -> str:
        value = fields.choice(name, ACTIVATION_NAMES, default)
        return gelu if value == "gelu" else value

    return computed(read, default)


def token_id() -> Any:
    """A token id, the first of several, or None."""

    def read(fields: Fields, name: str, before: Mapping[str, Any]) -> int | None:
        ids = fields.token_ids(name, before["vocab_size"])
        return ids[0] if ids else None

    return computed(read, None)


def token_ids() -> Any:
    """Token ids, one or several or none."""
    return computed(lambda fields, name, before: fields.token_ids(name, before["vocab_size"]), ())


def rope(**options: Any) -> Any:
    """`rope_parameters`, the rotary embedding as a `rushlight.models.rope.Rope`; declared after the sizes.

    Args:
        options: the architecture's defaults, as `read_rope` takes them.
    """

    def read(fields: Fields, _name: str, before: Mapping[str, Any]) -> Rope:
        head_dim = before.get("head_dim") or before["hidden_size"] // before["num_attention_heads"]
        return read_rope(fields, head_dim=head_dim, positions=before["max_position_embeddings"], **options)

    return computed(read, role="rope")


def windows(
    default: int | None = None,
    *,
    optional: bool = True,
    slides: Callable[[int, Mapping[str, Any]], bool] = lambda _layer, _before: True,
    switch: str = "",
) -> Any:
    """`sliding_window` of each layer, None for full attention, also from `layer_types`; declared after the sizes.

    Args:
        default: the window if config.json has no `sliding_window`; null there means none.
        optional: whether there may be none; not where the layers with a window differ in more than that.
        slides: without `layer_types`, whether a layer, counted from 0, has a window; gets the values read before.
        switch: a flag of config.json without which no layer has one.
    """

    def read(fields: Fields, _name: str, before: Mapping[str, Any]) -> tuple[int | None, ...]:
        n = before["num_hidden_layers"]
        window = fields.window("sliding_window", default)
        if window is None and not optional:
            found = "null" if fields.is_null("sliding_window") else 0
            fields.problem(f"sliding_window is {found}, expected a number of positions")
        types = fields.words("layer_types", n, ("full_attention", "sliding_attention"))
        if switch and not fields.flag(switch, False):
            window = None
        if window is None and optional and "sliding_attention" in types:
            needed = f"sliding_window and {switch}" if switch else "sliding_window"
            fields.problem(f"layer_types has sliding_attention, expected also {needed}, or full_attention")
        sliding = [each == "sliding_attention" for each in types] if types else [slides(i, before) for i in range(n)]
        return tuple(window if slide else None for slide in sliding)

    return computed(read, role="windows")


def other_side(tensor: str, of: tuple[str, int]) -> Callable[[Shapes], int]:
    """For `infer`: the other side of a matrix, transposed or not, of which one side is `of`, an axis of a tensor."""
    known = _axis(*of)

    def infer(shapes: Shapes) -> int:
        sides = shapes.get(tensor, ())
        return 0 if len(sides) != 2 else sides[1] if sides[0] == known(shapes) else sides[0]

    return infer


def _axis(tensor: str, axis: int) -> Callable[[Shapes], int]:
    def infer(shapes: Shapes) -> int:
        shape = shapes.get(tensor, ())
        return shape[axis] if axis < len(shape) else 0

    return infer


def _blocks(stem: str) -> Callable[[Shapes], int]:
    """Counts the blocks `stem.N`, including missing ones; a block whose number is far too high is left out."""
    block = re.compile(re.escape(stem) + r"\.([0-9]{1,9})\.")

    def infer(shapes: Shapes) -> int:
        numbers = {int(match[1]) for path in shapes if (match := block.match(path))}
        return max((n + 1 for n in numbers if n < 2 * len(numbers)), default=0)

    return infer
