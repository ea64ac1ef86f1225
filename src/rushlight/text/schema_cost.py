"""Bounds on the numbers in a JSON schema with which the time to prepare it grows, checked before llguidance sees them.

Measured with llguidance 1.9: a multiple of n costs a state for each remainder (100,000: half a second, and linear from
there on), optional properties cost their square (2,000: a third of a second), and patterns of properties more than
that (100: a third of a second, 300: half a minute). Lengths, numbers of items, ranges,
repeats in patterns and alternatives cost little, or meet the library's own limits within two seconds.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from typing import TYPE_CHECKING, Any

from rushlight.errors import RequestError, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_PROPERTIES", "check_cost"]

MAX_MULTIPLE = 100_000
"""Of a multiple, without its decimal point: 0.25 counts as 25."""
MAX_ROUND_MULTIPLE = 1_000
"""The same without the zeros at its end, with which a larger one is affordable too: 1,000,000 counts as 1."""
MAX_PROPERTIES = 2_000
"""In all of a schema, since references and `allOf` bring them together."""
MAX_PATTERN_PROPERTIES = 100
"""The same of `patternProperties`, each of which is told apart from all others."""

_MOST = {"properties": MAX_PROPERTIES, "patternProperties": MAX_PATTERN_PROPERTIES}


def check_cost(schema: Any) -> None:
    """Checks a schema, as values of JSON.

    Raises:
        RequestError: it would take minutes, and what in it, with its place as a JSON pointer.
    """
    together = Fraction(1)
    n_of = dict.fromkeys(_MOST, 0)
    for path, key, value in _members(schema):
        if key == "multipleOf" and isinstance(value, int | float) and value and not isinstance(value, bool):
            together = _least_common_multiple(together, Fraction(repr(abs(value))))
            _check_multiple(together, path)
        elif key in n_of and isinstance(value, dict):
            n_of[key] += len(value)
            if n_of[key] > _MOST[key]:
                raise _too_much(path, f"at most {_MOST[key]:,} {key} in the schema", f"{n_of[key]:,}")


def _members(schema: Any) -> Iterator[tuple[str, str, Any]]:
    """Every member of every object, with its JSON pointer; what is only data too, since references may lead there."""
    left: list[tuple[str, Any]] = [("#", schema)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            for key, member in value.items():
                yield f"{path}/{key}", key, member
                left.append((f"{path}/{key}", member))
        elif isinstance(value, list | tuple):
            left += [(f"{path}/{i}", item) for i, item in enumerate(value)]


def _least_common_multiple(a: Fraction, b: Fraction) -> Fraction:
    return Fraction(lcm(a.numerator, b.numerator), gcd(a.denominator, b.denominator))


def _check_multiple(multiple: Fraction, path: str) -> None:
    """`allOf` and references bring multiples together, so that all of a schema count as their common multiple."""
    while multiple.denominator > 1:
        multiple *= 10
    n = significant = multiple.numerator
    while significant % 10 == 0:
        significant //= 10
    if n > MAX_MULTIPLE and significant > MAX_ROUND_MULTIPLE:
        raise _too_much(
            path,
            f"at most {MAX_MULTIPLE:,} without the decimal point, as the least common multiple of all in the schema",
            f"{n:,}" if n < 10**30 else "a number of more than 30 digits",
        )


def _too_much(path: str, expected: str, found: str) -> RequestError:
    return RequestError(
        f"json_schema cannot be used: it takes too long to prepare for {printable_name(path)}",
        expected=expected,
        found=found,
    )
