"""Finds which characters of a rendered conversation come from its template, and which from its messages.

Special tokens are encoded as such only where the template wrote them, never in typed text. A template may cut, trim
and reorder messages, so they cannot be found by searching the text. Instead, the conversation is rendered a second time
with `SHADE` in place of every typed character but white space: characters that differ between the two texts were typed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Rendered", "compare", "shaded"]

SHADE = "\U0010fffd"
"""A private-use character: ordinary to a template, and in no token."""

_TYPED = re.compile(r"\S")
_ANSWERED = re.compile(r"</?think>|\S")
_TRUSTED_KEYS = frozenset({"role", "type"})
"""Members whose values are keywords of the format, not typed text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as prompt text.

    Attributes:
        text: the text.
        typed: the ranges (start, end) that come from messages, in order; None if unknown, because the template's text
            depends on that of the messages.
        strings: the text of the messages.
    """

    text: str
    typed: tuple[tuple[int, int], ...] | None
    strings: tuple[str, ...]


def shaded(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with `SHADE` for every typed character that is not white space.

    An answer keeps the tags around its reasoning: templates look for them, and the model wrote them.
    """
    return [_shade(message, _ANSWERED if message.get("role") == "assistant" else _TYPED) for message in messages]


def compare(text: str, shadow: str | None) -> tuple[tuple[int, int], ...] | None:
    """The ranges of `text` that are `SHADE` in `shadow`; None if the two differ elsewhere."""
    if shadow is None or len(text) != len(shadow):
        return None
    typed = tuple(match.span() for match in re.finditer(f"{SHADE}+", shadow))
    ends = [0, *(end for _, end in typed)]
    starts = [*(start for start, _ in typed), len(text)]
    same = all(text[end:start] == shadow[end:start] for end, start in zip(ends, starts, strict=True))
    return typed if same else None


def _shade(value: Any, typed: re.Pattern[str] = _TYPED) -> Any:
    if isinstance(value, str):
        return typed.sub(lambda match: SHADE if len(match[0]) == 1 else match[0], value)
    if isinstance(value, dict):
        return {key: item if key in _TRUSTED_KEYS else _shade(item, typed) for key, item in value.items()}
    if isinstance(value, list):
        return [_shade(item, typed) for item in value]
    return value
