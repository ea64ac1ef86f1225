"""What a checkpoint is called on what is passed on: a page, a report, a saved conversation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

__all__ = ["display_name"]


def display_name(source: str) -> str:
    """The name of a file or folder without the path to it; a hub id as it is.

    A `model.safetensors` has its folder's name before it. A path says where its owner keeps things, and sometimes who
    that is; and it is of no use on another machine.
    """
    if "://" in source:
        return PurePosixPath(urlsplit(source).path).name or source
    try:
        path = Path(source).expanduser()
        if not (path.is_absolute() or path.exists()):
            return source
        path = path.resolve()
    except (OSError, RuntimeError, ValueError):  # not a path that this machine can look at
        return source
    if path.name.startswith("model.safetensors") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or source
