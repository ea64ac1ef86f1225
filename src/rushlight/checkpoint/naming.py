"""The name of a checkpoint in files that may be shared: a page, a report, a saved conversation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

__all__ = ["display_name"]


def display_name(source: str) -> str:
    """The name of a file or folder without its path; a hub id unchanged.

    `model.safetensors` keeps the name of its folder. The path is left out because it can reveal who the user is, and is
    useless on another machine.
    """
    if "://" in source:
        return PurePosixPath(urlsplit(source).path).name or source
    try:
        path = Path(source).expanduser()
        if not (path.is_absolute() or path.exists()):
            return source
        path = path.resolve()
    except (OSError, RuntimeError, ValueError):  # not a path that can be resolved here
        return source
    if path.name.startswith("model.safetensors") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or source
