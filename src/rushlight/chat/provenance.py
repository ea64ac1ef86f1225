"""Which characters of a rendered conversation its template wrote, and which somebody typed.

A special token counts where the template wrote it; typed characters must never become one, whoever puts them together.
The template may cut, trim and reorder what was typed, so nobody can search the text for the messages. Instead the
conversation is rendered a second time with every typed character but white space made a `SHADE`: where the two texts
differ, there it was typed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Rendered", "compare", "shaded"]

SHADE = "\U0010fffd"
"""A private-use character: to a template a character like any other, and part of no token."""

_TRUSTED_KEYS = frozenset({"role", "type"})
"""Members whose values are words of the format, not text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the text that the model is to read.

    Attributes:
        text: the text.
        typed: the stretches of it, as (start, end) in order, that the template did not write; None if that cannot be
            told, since the template writes something else when the messages say something else.
        strings: what was typed, message by message.
    """

    text: str
    typed: tuple[tuple[int, int], ...] | None
    strings: tuple[str, ...]


def shaded(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with `SHADE` for every typed character that is not white space."""
    return [_shade(message) for message in messages]


def compare(text: str, shadow: str | None) -> tuple[tuple[int, int], ...] | None:
    """The stretches of `text` that `shadow` has in `SHADE`, or None where they differ in anything else."""
    if shadow is None or len(text) != len(shadow):
        return None
    typed = tuple(match.span() for match in re.finditer(f"{SHADE}+", shadow))
    ends = [0, *(end for _, end in typed)]
    starts = [*(start for start, _ in typed), len(text)]
    same = all(text[end:start] == shadow[end:start] for end, start in zip(ends, starts, strict=True))
    return typed if same else None


def _shade(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"\S", SHADE, value)
    if isinstance(value, dict):
        return {key: item if key in _TRUSTED_KEYS else _shade(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shade(item) for item in value]
    return value
