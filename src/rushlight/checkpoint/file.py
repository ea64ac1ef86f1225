"""A regular file, opened without blocking and read at offsets, that notices when it is changed underneath.

Reading is by `preadv` and not by `mmap`: where a mapped file that is cut kills the process with SIGBUS, and one that
is overwritten yields weights half old and half new, here the read raises `TruncatedError`. A file that is *replaced*
(another one renamed over its name, which is how downloads finish) is no concern: the file that was opened is read on.

Needs POSIX: `os.preadv` does not exist on Windows.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import CheckpointError, SourceError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["File"]

_PIECE_BYTES = 16 << 20
"""The most that one system call reads, so that Ctrl-C is honoured within a piece."""

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class File:
    """A regular file open for reading at offsets; a context manager. Safe to share between threads.

    Attributes:
        path: the path as it was given.
        size: bytes in the file when it was opened; every read requires that it stays so.

    Raises:
        SourceError: nothing is there, it is not a regular file, or it may not be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            _require_regular(self.path, self.path.stat())
            # Should a pipe take the file's place here, O_NONBLOCK keeps the open from waiting for a writer.
            self._file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise _cannot_open(self.path, error) from None
        try:
            opened = os.fstat(self._file.fileno())
            _require_regular(self.path, opened)
        except BaseException:
            self._file.close()
            raise
        self.size = opened.st_size
        self._modified_ns = opened.st_mtime_ns

    def read(self, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` bytes from `offset`.

        Raises:
            TruncatedError: the file is not the one that was opened any more, or ends before.
        """
        buffer = bytearray(n_bytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, a writable view of single bytes, from `offset`.

        Raises:
            TruncatedError: the file is not the one that was opened any more, or ends before.
            CheckpointError: the operating system reports an error.
        """
        done = 0
        try:
            while done < len(buffer):
                n_read = os.preadv(self._file.fileno(), [buffer[done : done + _PIECE_BYTES]], offset + done)
                if n_read == 0:
                    break
                done += n_read
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", file=self.path, offset=offset + done) from error
        self.require_unchanged()
        if done < len(buffer):
            raise TruncatedError(
                "the file ends too soon",
                file=self.path,
                offset=offset + done,
                expected=f"{len(buffer) - done:,} more bytes",
            )

    def fileno(self) -> int:
        """The file's descriptor, for readers that are not Python; they call `require_unchanged` when they have read."""
        return self._file.fileno()

    def require_unchanged(self) -> None:
        """Checks that the file is what it was when it was opened.

        After its bytes were read, not before: what was changed before or during the read is then seen.

        Raises:
            TruncatedError: it is not.
        """
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self._modified_ns):
            raise TruncatedError(
                "the file was changed while it was being read",
                file=self.path,
                expected=f"{self.size:,} bytes",
                found=f"{now.st_size:,}" if now.st_size != self.size else "the same size, written anew",
                remedy="load it again once whatever writes it has finished",
            )

    def close(self) -> None:
        """Close the file; reading from it afterwards is a ValueError."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise SourceError("not a regular file", file=path, found=kind)


def _cannot_open(path: Path, error: OSError | ValueError) -> SourceError:
    if isinstance(error, ValueError):  # a NUL in the path
        return SourceError(f"not a path: {error}", file=path)
    if error.errno == errno.ELOOP:
        return SourceError("the symbolic links go round in a circle", file=path)
    if error.errno == errno.ENOENT and path.is_symlink():
        return SourceError("a symbolic link to what is not there", file=path, found=f"a link to {path.readlink()}")
    if error.errno == errno.ENOENT:
        return SourceError("no such file", file=path)
    return SourceError(f"cannot be opened: {error.strerror}", file=path)
