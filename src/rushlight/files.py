"""Files that are written whole."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes, *, private: bool = False) -> None:
    """Write a file, over what is there: whole, or not at all.

    Args:
        path: the file. A temporary one beside it takes its place at the end; a device or a pipe, such as /dev/stdout,
            is written to as it is.
        data: its bytes.
        private: whether only its owner may read it; otherwise who may is as for any new file.

    Raises:
        OSError: the folder is not there or not writable, or the disk is full; names `path`, and nothing is left behind.
    """
    path = Path(path)
    try:
        if _is_stream(path):
            with path.open("wb") as file:
                file.write(data)
            return
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not private:
                Path(part).chmod(0o666 & ~_umask())  # mkstemp lets nobody else read
            Path(part).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(part).unlink()
            raise
    except OSError as error:
        # Nobody has heard of the temporary file.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, or a name in /dev for whatever the process has open."""
    if not path.exists():
        return False
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.absolute().parent == Path("/dev")


def _umask() -> int:
    """The mask of the process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
