"""Atomic writes: a file is replaced in full, or left as it was."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["atomic_write"]


def atomic_write(path: str | os.PathLike[str], data: bytes, *, private: bool = False) -> None:
    """Write `data` to `path`, atomically: a temporary file in the same folder is synced and renamed over it.

    Args:
        path: the file to create or replace. A device or a pipe, such as /dev/stdout, is written to directly.
        data: the content.
        private: whether only the owner may read the file; otherwise the umask decides, as for any new file.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full. The error names `path`; no temporary
            file remains.
    """
    path = Path(path)
    try:
        if _is_stream(path):
            with path.open("wb") as file:
                file.write(data)
            return
        part = path.parent / f".{path.name}.{token_hex(4)}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        # The temporary file means nothing to the caller, so the error names `path`.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _is_stream(path: Path) -> bool:
    """Whether `path` is a device or a pipe, or lies in /dev, whose entries refer to the process's open files."""
    if not path.exists():
        return False
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.absolute().parent == Path("/dev")
