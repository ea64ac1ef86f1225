"""Reads a JSON file whose top level is an object, up to a size limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.errors import ConfigError, FormatError, RushlightError
from rushlight.files.limits import MAX_CONFIG_BYTES
from rushlight.files.strict_json import parse_json_object
from rushlight.files.text_file import read_bytes

if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["read_config", "read_json_object"]


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a config.json or a generation_config.json.

    Raises:
        ConfigError: the file is larger than 1 MiB, or not strict JSON.
        SourceError: no such file, not a regular file, or not readable.
    """
    return read_json_object(path, max_bytes=MAX_CONFIG_BYTES, error=ConfigError)


def read_json_object(
    path: str | os.PathLike[str], *, max_bytes: int, error: type[RushlightError] = FormatError
) -> dict[str, Any]:
    """The object in a file of strict JSON.

    Raises:
        error: the file is larger than `max_bytes`, or `parse_json_object` refuses it.
        SourceError: no such file, not a regular file, or not readable.
    """
    return parse_json_object(read_bytes(path, max_bytes=max_bytes, error=error), file=path, error=error)
