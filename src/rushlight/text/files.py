"""A tokenizer's files, read with a bound: UTF-8 text, and strict JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.files.strict_json import parse_json_object

if TYPE_CHECKING:
    from typing import Any

__all__ = ["MAX_FILE_BYTES", "parse_object", "read_bytes", "read_text"]

MAX_FILE_BYTES = 64 << 20
"""Twice the largest tokenizer.json in wide use, one of 262,144 tokens."""

_DOWNLOAD_AGAIN = "download the file again"


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        TokenizerError: it is missing, not a regular file, or too large.
    """
    path = Path(path)
    try:
        # A named pipe would block in open.
        if path.exists() and not path.is_file():
            raise TokenizerError("not a regular file", file=path)
        with path.open("rb") as file:
            # Room is made for all that is asked for, so not for more than there is.
            raw = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            file=path,
            remedy="a tokenizer is one tokenizer.json, or vocab.json and merges.txt",
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise TokenizerError("too large for a tokenizer", file=path, expected=f"at most {MAX_FILE_BYTES:,} bytes")
    return raw


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file of at most `MAX_FILE_BYTES`.

    Raises:
        TokenizerError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError("not UTF-8", file=path, offset=error.start, remedy=_DOWNLOAD_AGAIN) from None


def parse_object(raw: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that `raw`, read from `path`, holds.

    Raises:
        TokenizerError: it is not one, as `parse_json_object` says.
    """
    return parse_json_object(raw, file=path, error=TokenizerError, remedy=_DOWNLOAD_AGAIN)
