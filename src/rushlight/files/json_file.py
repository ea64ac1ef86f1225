"""JSON files beside a checkpoint: bounded in size, and strict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import ConfigError, FormatError, RushlightError
from rushlight.files.file import File
from rushlight.files.sniff import SNIFF_BYTES, sniff_text
from rushlight.files.strict_json import parse_json_object

if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["check_text_file", "read_config", "read_json_object"]

_MAX_CONFIG_BYTES = 1 << 20


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config.json, or a generation_config.json.

    Raises:
        ConfigError: it is larger than 1 MiB, or not a JSON object.
        SourceError: there is no such file, or it is not a regular one.
    """
    return read_json_object(path, max_bytes=_MAX_CONFIG_BYTES, error=ConfigError)


def read_json_object(
    path: str | os.PathLike[str], *, max_bytes: int, error: type[RushlightError] = FormatError
) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        error: the file is larger than `max_bytes`, or not what `parse_json_object` takes.
        SourceError: there is no such file, or it is not a regular one.
    """
    with File(path) as file:
        if file.size > max_bytes:
            raise error(
                "too large to be read", file=path, expected=f"at most {max_bytes:,} bytes", found=f"{file.size:,}"
            )
        raw = file.read(0, file.size)
    _refuse_other_kinds(raw[:SNIFF_BYTES], path, error)
    return parse_json_object(raw, file=path, error=error)


def check_text_file(path: str | os.PathLike[str], *, error: type[RushlightError] = FormatError) -> None:
    """Require that a file which should be text does not begin as another kind of file, such as a Git LFS pointer.

    Raises:
        error: it does; it names the kind.
        SourceError: there is no such file, or it is not a regular one.
    """
    with File(path) as file:
        start = file.read(0, min(SNIFF_BYTES, file.size))
    _refuse_other_kinds(start, path, error)


def _refuse_other_kinds(start: bytes, path: str | os.PathLike[str], error: type[RushlightError]) -> None:
    if kind := sniff_text(start, Path(path)):
        raise error(f"not a text file but {kind.name}", file=path, remedy=kind.remedy)
