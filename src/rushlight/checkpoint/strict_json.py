"""JSON files from strangers: bounded in size, and without what Python's parser lets pass.

`json.loads` accepts NaN and Infinity, keeps the last of two equal keys, and recurses as deep as the text does. A config
that holds any of that was not written by whatever claims to have written it, and is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING

from rushlight.checkpoint.file import File
from rushlight.errors import FormatError, RushlightError, printable_name

if TYPE_CHECKING:
    import os
    from typing import Any, NoReturn

__all__ = ["parse_json_object", "read_json_object"]

_MAX_NUMBER_CHARS = 400
"""Longer than any number that a double can hold, and short enough to convert at once."""


def read_json_object(
    path: str | os.PathLike[str], *, max_bytes: int, error: type[RushlightError] = FormatError
) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        error: the file is larger than `max_bytes`, is not UTF-8, is not JSON, holds NaN or Infinity, a key twice in one
            object, a number of more than 400 characters, half of a surrogate pair, or nesting deeper than the
            interpreter's stack; or its top level is not an object.
        SourceError: there is no such file, or it is not a regular one.
    """
    with File(path) as file:
        if file.size > max_bytes:
            raise error(
                "too large to be read", file=path, expected=f"at most {max_bytes:,} bytes", found=f"{file.size:,}"
            )
        raw = file.read(0, file.size)
    return parse_json_object(raw, file=path, error=error)


def parse_json_object(
    raw: bytes, *, file: str | os.PathLike[str], error: type[RushlightError] = FormatError
) -> dict[str, Any]:
    """The object that `raw`, the content of `file`, holds.

    Raises:
        error: as `read_json_object`, but for the size.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
        if rb"\ud" in raw.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as problem:
        raise error("not UTF-8", file=file, offset=problem.start) from None
    except UnicodeEncodeError:
        raise error("a string escapes half of a surrogate pair", file=file) from None
    except json.JSONDecodeError as problem:
        raise error(
            f"not JSON: {problem.msg[0].lower()}{problem.msg[1:]} in line {problem.lineno}, column {problem.colno}",
            file=file,
        ) from None
    except ValueError as problem:
        raise error(f"not strict JSON: {problem}", file=file) from None
    except RecursionError:
        raise error("nested too deeply", file=file) from None
    if not isinstance(value, dict):
        raise error("the top level is not a JSON object", file=file, found=_json_kind(value))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f'the key "{printable_name(twice)}" stands twice in one object')
    return members


def _int(text: str) -> int:
    return int(_short(text))


def _float(text: str) -> float:
    value = float(_short(text))
    if math.isinf(value):
        raise ValueError(f"the number {text[:24]} is beyond the range of a double")
    return value


def _short(number: str) -> str:
    if len(number) > _MAX_NUMBER_CHARS:
        raise ValueError(f"a number of {len(number):,} characters")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "true or false"}.get(type(value), "a number")
