"""Refuses JSON schemas that llguidance would take minutes to compile.

Measured with llguidance 1.9: multipleOf n takes one state per remainder (100,000: half a second, and linear beyond);
the time for optional properties is quadratic in their number (2,000: a third of a second), that for patternProperties
grows faster still (100: a third of a second, 300: half a minute). Lengths, numbers of items, ranges, repeats in
patterns and alternatives take little, or reach the library's own limits within two seconds.
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
"""The largest multipleOf, without its decimal point: 0.25 counts as 25."""
MAX_ROUND_MULTIPLE = 1_000
"""The same without trailing zeros, because those are cheap: 1,000,000 counts as 1."""
MAX_PROPERTIES = 2_000
"""The most properties in a schema, counted over all of it because references and `allOf` can combine them."""
MAX_PATTERN_PROPERTIES = 100
"""The most patternProperties in a schema, counted likewise."""

_MOST = {"properties": MAX_PROPERTIES, "patternProperties": MAX_PATTERN_PROPERTIES}


def check_cost(schema: Any) -> None:
    """Checks a schema, as parsed JSON.

    Raises:
        RequestError: it would take minutes to compile; names the member responsible as a JSON pointer.
    """
    combined = Fraction(1)
    n_of = dict.fromkeys(_MOST, 0)
    for path, key, value in _members(schema):
        if key == "multipleOf" and isinstance(value, int | float) and value and not isinstance(value, bool):
            combined = _least_common_multiple(combined, Fraction(repr(abs(value))))
            _check_multiple(combined, path)
        elif key in n_of and isinstance(value, dict):
            n_of[key] += len(value)
            if n_of[key] > _MOST[key]:
                raise _too_much(path, f"at most {_MOST[key]:,} {key} in the schema", f"{n_of[key]:,}")


def _members(schema: Any) -> Iterator[tuple[str, str, Any]]:
    """Every member of every object with its JSON pointer, including mere data, because references may lead there."""
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
    """Checks the least common multiple of a schema so far: `allOf` and references can combine all of them."""
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
        f"json_schema cannot be used: it takes too long to compile because of {printable_name(path)}",
        expected=expected,
        found=found,
    )
