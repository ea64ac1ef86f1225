"""JSON files beside a checkpoint: bounded in size, and strict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.checkpoint.file import File
from rushlight.errors import FormatError, RushlightError
from rushlight.strict_json import parse_json_object

if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["read_json_object"]


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
    return parse_json_object(raw, file=path, error=error)
