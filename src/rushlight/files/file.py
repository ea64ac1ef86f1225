"""Reads a regular file at offsets, without blocking on open, and raises if the file changes meanwhile.

Reads use `preadv` instead of `mmap`: when another process truncates a mapped file, the reader dies of SIGBUS, and when
one overwrites it, the weights are half old and half new. Here both raise `TruncatedError`. A file that is *replaced*
(another one renamed over its name, which is how downloads finish) stays readable while it is open; after `release`, the
path must still lead to the same file.

Needs POSIX: `os.preadv` does not exist on Windows.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import CheckpointError, SourceError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

__all__ = ["File", "open_error"]

_PIECE_BYTES = 16 << 20
"""The most that one system call reads, so that Ctrl-C takes effect between two."""

_SETTLE_NS = 10_000_000
"""A single write call is assumed to have finished after this time."""
_MAX_WAITS = 10
_RETRY = "load it again once the program that writes it has finished"

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class File:
    """A regular file, open for reading at offsets. A context manager; threads may share it.

    Attributes:
        path: the path as passed.
        size: bytes in the file when it was opened; a read raises if it has changed since.

    Raises:
        SourceError: no such file, not a regular file, or not readable.
        TruncatedError: the file is being written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._status = _settled_status(self._file.fileno(), self.path)
        except BaseException:
            self._file.close()
            raise
        self._reopen_path: Path | None = None
        self.size = self._status.st_size

    def release(self) -> None:
        """Close the descriptor. Each later read reopens the file, and raises if it is not the same one.

        Call it before other threads use the file.
        """
        self._reopen_path = self.path.absolute()  # the working directory may change
        self._file.close()

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The file's descriptor, for reads at offsets, including those of native code.

        The check for changes runs on exit, so that it covers changes both before and during the reads.

        Raises:
            TruncatedError: on exit: the file has changed since it was first opened.
            SourceError: the file was released and cannot be reopened.
        """
        if self._reopen_path is None:
            yield self._file.fileno()
            self._require_unchanged(os.fstat(self._file.fileno()))
            return
        with _open(self._reopen_path) as file:
            yield file.fileno()
            self._require_unchanged(os.fstat(file.fileno()))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` bytes from `offset`.

        Raises:
            TruncatedError: the file has changed since it was opened, or ends too early.
        """
        buffer = bytearray(n_bytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, a writable view of single bytes, from `offset`.

        Raises:
            TruncatedError: the file has changed since it was opened, or ends too early.
            CheckpointError: the operating system reports an I/O error.
        """
        done = 0
        with self.opened() as descriptor:
            try:
                while done < len(buffer):
                    n_read = os.preadv(descriptor, [buffer[done : done + _PIECE_BYTES]], offset + done)
                    if n_read == 0:
                        break
                    done += n_read
            except OSError as error:
                message = f"cannot be read: {error.strerror}"
                raise CheckpointError(message, file=self.path, offset=offset + done) from error
        if done < len(buffer):
            raise TruncatedError(
                "the file ends too soon",
                file=self.path,
                offset=offset + done,
                expected=f"{len(buffer) - done:,} more bytes",
            )

    def close(self) -> None:
        """Close the file; a later read raises ValueError."""
        self._file.close()
        self._reopen_path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def require_unchanged(self, descriptor: int) -> None:
        """Checks a descriptor of the file that was made while it was open; this file may be closed.

        Raises:
            TruncatedError: the file has changed since it was opened.
        """
        self._require_unchanged(os.fstat(descriptor))

    def _require_unchanged(self, now: os.stat_result) -> None:
        first = self._status
        if (now.st_dev, now.st_ino) != (first.st_dev, first.st_ino):
            found = "another file under the same name"
        elif now.st_size != first.st_size:
            found = f"{now.st_size:,}"
        # A writer can reset mtime but not ctime. A hard link made or removed also moves ctime, and changes nlink.
        elif now.st_mtime_ns != first.st_mtime_ns or (
            now.st_ctime_ns != first.st_ctime_ns and now.st_nlink == first.st_nlink
        ):
            found = "the same size, rewritten"
        else:
            return
        raise TruncatedError(
            "the file was changed while it was being read",
            file=self.path,
            expected=f"{self.size:,} bytes",
            found=found,
            remedy=_RETRY,
        )


def _open(path: Path) -> FileIO:
    """Opens a regular file for reading.

    Raises:
        SourceError: no such file, not a regular file, or not readable.
    """
    try:
        _require_regular(path, path.stat())
        # If a pipe replaces the file right here, O_NONBLOCK keeps open() from waiting for a writer.
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:
        raise open_error(path, error) from None
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _settled_status(descriptor: int, path: Path) -> os.stat_result:
    """The status of a file, once its last modification is at least `_SETTLE_NS` old.

    A write call updates mtime before it copies the bytes, so a fresh mtime can hide a write that is still running.

    Raises:
        TruncatedError: the file is written to continuously.
    """
    for _ in range(_MAX_WAITS):
        status = os.fstat(descriptor)
        age_ns = time.time_ns() - status.st_mtime_ns
        if not 0 <= age_ns < _SETTLE_NS:
            return status
        time.sleep((_SETTLE_NS - age_ns) / 1e9)
    raise TruncatedError("the file is being written", file=path, remedy=_RETRY)


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a special file")
        raise SourceError("not a regular file", file=path, found=kind)


def open_error(path: Path, error: OSError | ValueError) -> SourceError:
    """The error for a file that cannot be opened, with its cause and the next step."""
    if isinstance(error, ValueError):  # a NUL in the path
        return SourceError(f"not a path: {error}", file=path)
    if error.errno == errno.ELOOP:
        return SourceError("the symbolic links form a loop", file=path)
    if error.errno == errno.ENOENT and path.is_symlink():
        return SourceError("the symbolic link is broken", file=path, found=f"a link to {path.readlink()}")
    if error.errno == errno.ENOENT:
        return SourceError("no such file", file=path)
    remedy = None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "close files that this program has open, or raise its limit (`ulimit -n`)"
    return SourceError(f"cannot be opened: {error.strerror}", file=path, remedy=remedy)
