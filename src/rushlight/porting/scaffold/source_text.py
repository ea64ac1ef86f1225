"""Writes Python source: literals, assignments and calls, wrapped as `ruff format` and `black` do."""

from __future__ import annotations

import json
import keyword
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


__all__ = [
    "MODEL_WIDTH",
    "WIDTH",
    "assignment",
    "call_lines",
    "comment_lines",
    "dict_lines",
    "imported",
    "indented",
    "one_line",
    "room_for",
    "set_lines",
    "string_literal",
    "tuple_literal",
]


WIDTH = 88
"""The line length to keep to where names are short enough."""
MODEL_WIDTH = 120
"""The line length of the files in models/."""


def string_literal(text: str) -> str:
    """A string as Python source, in double quotes: Python reads every escape that JSON writes."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in quoted)


def tuple_literal(words: tuple[str, ...]) -> str:
    """A tuple of strings as Python source, on several lines if it is long; strings with a backslash are raw."""
    quoted = [
        f'r"{word}"' if "\\" in word and '"' not in word and word.isprintable() else string_literal(word)
        for word in words
    ]
    one = f"({', '.join(quoted)}{',' if len(words) == 1 else ''})"
    return one if len(one) <= WIDTH - 20 else "(\n" + "".join(f"    {word},\n" for word in quoted) + ")"


def dict_lines(before: str, items: Mapping[str, str], room: int) -> list[str]:
    """A dict as Python source behind `before`, from its keys and the source of its values; on one line if it fits."""
    pairs = [f"{string_literal(key)}: {value}" for key, value in items.items()]
    one = f"{before}{{{', '.join(pairs)}}}"
    return [one] if len(one) <= room else [f"{before}{{", *(f"    {pair}," for pair in pairs), "}"]


def set_lines(before: str, words: Iterable[str], room: int) -> list[str]:
    """A set of strings as Python source behind `before`, which opens a call; on one line if it fits."""
    quoted = [string_literal(word) for word in sorted(set(words))]
    one = f"{before}{{{', '.join(quoted)}}})"
    return [one] if len(one) <= room else [before, "    {", *(f"        {word}," for word in quoted), "    }", ")"]


def imported(module: str, names: Iterable[str]) -> list[str]:
    """An import of names, in the order of isort: constants, classes, functions."""

    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() and len(name) > 1 else 2 if name[0].islower() else 1), name

    return call_lines("", sorted(names, key=order), MODEL_WIDTH, before=f"from {module} import ")


def comment_lines(text: str, room: int) -> list[str]:
    """A comment in lines of at most `room` columns."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return [f"# {line}" for line in wrap(shown, room - 2, break_long_words=False, break_on_hyphens=False)]


def one_line(text: str) -> str:
    """Text made safe for one line of a docstring."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.replace("\\", "/").replace('"', "'")


def _is_attribute(name: str) -> bool:
    """Whether `self.name` sets this attribute: Python would mangle a name that begins with two underscores."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__") and name.isascii()


def room_for(name: str) -> int:
    """The columns left for the value in an assignment to the attribute."""
    return WIDTH - 8 - len(f"self.{name} = ") if _is_attribute(name) else WIDTH - 13


def assignment(name: str, value: list[str]) -> list[str]:
    """`self.name = value`, or setattr where the name is not a valid attribute."""
    if _is_attribute(name):
        return [f"self.{name} = {value[0]}", *value[1:]]
    if len(value) == 1 and len(line := f"setattr(self, {string_literal(name)}, {value[0]})") <= WIDTH - 8:
        return [line]
    return ["setattr(", "    self,", f"    {string_literal(name)},", *indented([*value[:-1], f"{value[-1]},"]), ")"]


def call_lines(name: str, arguments: list[str], room: int, before: str = "") -> list[str]:
    """A call, or an import without `name`, on one line if it fits, otherwise with one argument per line."""
    inside = ", ".join(arguments)
    one = f"{before}{name}({inside})" if name else f"{before}{inside}"
    if len(one) <= room and "\n" not in one:
        return [one]
    lines = [line for argument in arguments for line in f"{argument},".splitlines()]
    return [f"{before}{name}(", *indented(lines), ")"]


def indented(lines: Iterable[str], levels: int = 1) -> list[str]:
    """The lines, indented by `levels`."""
    return [f"{'    ' * levels}{line}" if line else "" for line in lines]
