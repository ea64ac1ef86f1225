"""A tokenizer's files, read with a bound: UTF-8 text, and JSON objects without a key twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError, printable_name

if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["MAX_FILE_BYTES", "parse_object", "read_text"]

MAX_FILE_BYTES = 64 << 20
"""Twice the largest tokenizer.json in wide use, one of 262,144 tokens."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        TokenizerError: it is missing, not a regular file, too large, or not UTF-8.
    """
    path = Path(path)
    try:
        # A named pipe would block in open.
        if path.exists() and not path.is_file():
            raise TokenizerError("not a regular file", file=path)
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            file=path,
            remedy="a tokenizer is one tokenizer.json, or vocab.json and merges.txt",
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise TokenizerError("too large for a tokenizer", file=path, expected=f"at most {MAX_FILE_BYTES:,} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError("not UTF-8", file=path, offset=error.start, remedy="download the file again") from None


def parse_object(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that `text`, read from `path`, holds.

    Raises:
        TokenizerError: not JSON, not an object, nested too deeply, or with a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise TokenizerError("nested too deeply", file=path) from None
    except ValueError as error:
        raise TokenizerError(f"not JSON: {error}", file=path, remedy="download the file again") from None
    if not isinstance(value, dict):
        raise TokenizerError("the top level is not a JSON object", file=path)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f'the key "{printable_name(twice)}" stands twice in one object')
    return members
