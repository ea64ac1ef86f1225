"""Reads a text file in full, up to a size limit."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import FormatError, RushlightError
from rushlight.files.file import File, open_error
from rushlight.files.sniff import SNIFF_BYTES, sniff_text

if TYPE_CHECKING:
    import os

__all__ = ["read_bytes", "read_text"]


def read_bytes(
    path: str | os.PathLike[str],
    *,
    max_bytes: int,
    first: int | None = None,
    error: type[RushlightError] = FormatError,
) -> bytes:
    """The content of a regular file of at most `max_bytes` that should hold text, or only its `first` bytes.

    Raises:
        error: the file is larger, or begins as another kind of file does, such as a Git LFS pointer.
        SourceError: no such file, not a regular file, or not readable.
        TruncatedError: the file changed while it was read.
    """
    with File(path) as file:
        if file.size > max_bytes:
            raise _too_large(path, max_bytes, error, found=f"{file.size:,}")
        raw = file.read(0, file.size if first is None else min(first, file.size))
    if kind := sniff_text(raw[:SNIFF_BYTES], Path(path)):
        raise error(f"not a text file but {kind.name}", file=path, remedy=kind.remedy)
    return raw


def read_text(
    path: str | os.PathLike[str],
    *,
    max_bytes: int,
    error: type[RushlightError] = FormatError,
    allow_pipe: bool = False,
) -> str:
    """The text of a UTF-8 file of at most `max_bytes`, line ends unchanged.

    Args:
        path: the file.
        max_bytes: the limit.
        error: the class of error for what is wrong with the content.
        allow_pipe: whether a pipe or a device will do, such as /dev/stdin: only for a path that the user typed, since
            reading it can block.

    Raises:
        error: as `read_bytes`, or the file is not UTF-8.
        SourceError, TruncatedError: as `read_bytes`.
    """
    is_pipe = allow_pipe and _is_pipe(path)
    raw = _read_pipe(path, max_bytes, error) if is_pipe else read_bytes(path, max_bytes=max_bytes, error=error)
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        raise error("not UTF-8", file=path, offset=problem.start, remedy="save the file as UTF-8") from None


def _is_pipe(path: str | os.PathLike[str]) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _read_pipe(path: str | os.PathLike[str], max_bytes: int, error: type[RushlightError]) -> bytes:
    try:
        with Path(path).open("rb") as pipe:
            raw = pipe.read(max_bytes + 1)
    except OSError as problem:
        raise open_error(Path(path), problem) from None
    if len(raw) > max_bytes:
        raise _too_large(path, max_bytes, error)
    return raw


def _too_large(
    path: str | os.PathLike[str], max_bytes: int, error: type[RushlightError], found: str | None = None
) -> RushlightError:
    remedy = "check that it is the file you meant"
    return error(
        "the file is too large", file=path, expected=f"at most {max_bytes:,} bytes", found=found, remedy=remedy
    )
