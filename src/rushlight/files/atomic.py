"""Files that are written whole."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["atomic_write"]


def atomic_write(path: str | os.PathLike[str], data: bytes, *, private: bool = False) -> None:
    """Write a file, over what is there: whole, or not at all.

    Args:
        path: the file. A temporary one beside it takes its place at the end; a device or a pipe, such as /dev/stdout,
            is written to as it is.
        data: its bytes.
        private: whether only its owner may read it; otherwise the umask decides, as for any new file.

    Raises:
        OSError: the folder is not there or not writable, or the disk is full; names `path`, and nothing is left behind.
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
        # The caller knows `path` alone, not the temporary file.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, or a name in /dev for whatever the process has open."""
    if not path.exists():
        return False
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.absolute().parent == Path("/dev")
