"""Declares a sampling setting as a dataclass field: default, valid values, help text and command-line flag."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Rational, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Unpaired surrogates, as which Python passes bytes of the command line that are not UTF-8."""


@dataclass(frozen=True, slots=True)
class Range:
    """The valid values of a setting.

    Attributes:
        type: the type of a value, or of its items.
        expected: a description of valid values, which follows "expected" in error messages.
        contains: whether a value is valid.
    """

    type: type
    expected: str
    contains: Callable[[Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The declaration of a setting, which validation, documentation and the command line derive from.

    Attributes:
        range: its valid values.
        help: a sentence or two, in which `metavar` is the value.
        metavar: the placeholder for the value.
        flags: its command-line flags; empty if it has none.
        group: the title of the flags in `--help`.
        aliases: its names in transformers, vLLM, llama.cpp, Ollama, mlx-lm and OpenAI's API.
        in_beam_search: whether a beam search takes it.
    """

    range: Range
    help: str
    metavar: str
    flags: tuple[str, ...]
    group: str
    aliases: tuple[str, ...]
    in_beam_search: bool

    @property
    def flag(self) -> str:
        """The flag that error messages name."""
        return self.flags[0].partition("/")[0]


def setting(
    default: Any,
    valid: Range,
    help: str,  # noqa: A002, the name that argparse and Typer use
    *,
    metavar: str = "",
    flags: str = "",
    group: str = "",
    aliases: str = "",
    in_beam_search: bool = False,
) -> Any:
    """A dataclass field that declares a sampling setting; `flags` and `aliases` are separated by spaces."""
    declared = Setting(
        range=valid,
        help=help,
        metavar=metavar,
        flags=tuple(flags.split()),
        group=group,
        aliases=tuple(aliases.split()),
        in_beam_search=in_beam_search,
    )
    return field(default=default, metadata={"setting": declared})


def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name."""
    return {each.name: each.metadata["setting"] for each in fields(cls)}


def documented(text: str, cls: Any) -> str:
    """The docstring of `cls` with its settings as the section "Attributes", in place of `{settings}`."""
    lines = []
    for name, each in settings_of(cls).items():
        value = f" ({each.metavar})" if _words(each.metavar) <= _words(each.help) and each.metavar else ""
        lines.append(f"        {name}{value}: {each.help}\n")
    return text.replace("{settings}\n", "Attributes:\n" + "".join(lines))


def unknown_setting(name: object, settings: Mapping[str, Setting]) -> str:
    """The error message for an unknown setting; it suggests a similar name or the equivalent of an alias."""
    if name == "stop":
        return "stop is not a setting: pass it as a separate argument"
    if name in {"beams", "n_beams", "num_beams", "beam_width"}:
        return f"{name} is not a sampling setting: use model.beam_search(prompt, n_beams=...), or --beams"
    text = f"unknown setting {name!r}"
    if not isinstance(name, str):
        return text
    names = {alias: known for known, each in settings.items() for alias in each.aliases}
    names |= {"stop_sequences": "stop", "stop_strings": "stop"}
    meant = names.get(name) or next(iter(get_close_matches(name, [*settings, "stop"], n=1)), None)
    return f"{text}; did you mean {meant}?" if meant else f"{text}, expected one of {', '.join(settings)}"


def integer(least: int, most: float = math.inf) -> Range:
    """Integers in a closed range; not booleans."""
    bounds = f"from {least} to {_power(most)}" if most < math.inf else f"of at least {least}"
    return Range(int, f"an integer {bounds}", lambda value: _is_integer(value, least, most))


def number(least: float, most: float, *, expected: str = "") -> Range:
    """Real numbers in a closed range; not booleans."""
    return Range(
        float, expected or f"a number from {least:g} to {most:g}", lambda value: _is_number(value, least, most)
    )


def token_ids() -> Range:
    """A collection of token ids."""
    return Range(
        int,
        "a list of token ids",
        lambda value: isinstance(value, Collection) and all(_is_integer(i, 0) for i in value),
    )


def biases(most: int, bias: Range) -> Range:
    """A mapping of at most `most` token ids to biases."""
    return Range(
        dict,
        f"at most {most} token ids, each with {bias.expected}",
        lambda value: (
            isinstance(value, Mapping)
            and len(value) <= most
            and all(_is_integer(i, 0) and bias.contains(each) for i, each in value.items())
        ),
    )


def grammar(expected: str, max_chars: int, *, mapping: bool = False) -> Range:
    """A Unicode string of bounded length; or a mapping, if allowed."""

    def contains(value: Any) -> bool:
        if isinstance(value, Mapping):
            return mapping
        return isinstance(value, str) and len(value) <= max_chars and not _SURROGATES.search(value)

    return Range(str, f"{expected} of at most {max_chars:,} Unicode characters", contains)


BOOLEAN = Range(bool, "true or false", lambda value: isinstance(value, bool))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    # An int may be too large for a float, and the bounds too large for NumPy's narrower floats.
    exact: Any = value if isinstance(value, Rational) else float(value)
    return bool(least <= exact <= most)


def _power(most: float) -> str:
    return "2^64 - 1" if most == 2**64 - 1 else f"{most}"
