"""Parses untrusted JSON strictly.

`json.loads` accepts NaN and Infinity, keeps the last of two equal keys, and recurses as deep as the input nests. No
program that writes these files produces any of that, so a file that contains it is damaged or hostile, and is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from rushlight.errors import FormatError, RushlightError, printable_name

if TYPE_CHECKING:
    import os
    from typing import Any, NoReturn

__all__ = ["parse_json_object"]


def parse_json_object(
    raw: bytes,
    *,
    file: str | os.PathLike[str],
    error: type[RushlightError] = FormatError,
    remedy: str | None = None,
) -> dict[str, Any]:
    """The JSON object in `raw`.

    Args:
        raw: the content of `file`.
        file: where it was read, for errors.
        error: the class of error to raise.
        remedy: the next step, for errors.

    Raises:
        error: not UTF-8, or not JSON; NaN or Infinity, a duplicate key, a number beyond the range of a double, an
            integer longer than Python converts (4,300 digits), half of a surrogate pair, or nesting deeper than the
            interpreter's stack; or the top level is not a JSON object.
    """
    refused = partial(error, file=file, remedy=remedy)
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_float=_float, parse_constant=_refuse_constant
        )
        if rb"\ud" in raw.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as problem:
        raise refused("not UTF-8", offset=problem.start) from None
    except UnicodeEncodeError:
        raise refused("a string escapes half of a surrogate pair") from None
    except json.JSONDecodeError as problem:
        reason = problem.msg[0].lower() + problem.msg[1:]
        raise refused(f"not JSON: {reason} in line {problem.lineno}, column {problem.colno}") from None
    except _NotStrictError as problem:
        raise refused(f"not strict JSON: {problem}") from None
    except ValueError:  # raised by int; see sys.set_int_max_str_digits
        raise refused("not strict JSON: an integer of thousands of digits") from None
    except RecursionError:
        raise refused("nested too deeply") from None
    if not isinstance(value, dict):
        raise refused("the top level is not a JSON object", found=_json_kind(value))
    return value


class _NotStrictError(ValueError):
    """JSON that Python's parser accepts and this one does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise _NotStrictError(f'the key "{printable_name(twice)}" appears twice in one object')
    return members


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotStrictError(f"the number {text[:24]} is beyond the range of a double")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise _NotStrictError(f"{text} is not JSON")


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "true or false"}.get(type(value), "a number")
