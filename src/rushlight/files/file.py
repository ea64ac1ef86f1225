"""A regular file, opened without blocking and read at offsets, that notices when it is changed underneath.

Reading is by `preadv` and not by `mmap`: where a mapped file that is cut kills the process with SIGBUS, and one that
is overwritten yields weights half old and half new, here the read raises `TruncatedError`. A file that is *replaced*
(another one renamed over its name, which is how downloads finish) is read on as long as it is held open; one that was
released in between has to be the same file still.

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

__all__ = ["File"]

_PIECE_BYTES = 16 << 20
"""The most that one system call reads, so that Ctrl-C is honoured within a piece."""

_MOMENT_NS = 10_000_000
"""A write that one system call makes of a piece of a file is over by then."""
_PATIENCE = 10
_LATER = "load it again once whatever writes it has finished"

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
        TruncatedError: it is being written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._opened = _at_rest(self._file.fileno(), self.path)
        except BaseException:
            self._file.close()
            raise
        self._again: Path | None = None
        self.size = self._opened.st_size

    def release(self) -> None:
        """Give the descriptor back. From now on each read opens the file again, and requires that it is the same.

        For the one thread that has the file so far.
        """
        self._again = self.path.absolute()  # the working directory may change
        self._file.close()

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The file's descriptor, for reading at offsets, by native code too.

        On leaving, and not before, it is checked that the file is what it was when it was opened first: so what was
        changed before or during the read is seen.

        Raises:
            TruncatedError: it is not.
            SourceError: it was released, and cannot be opened again.
        """
        if self._again is None:
            yield self._file.fileno()
            self._require_unchanged(os.fstat(self._file.fileno()))
            return
        with _open(self._again) as file:
            yield file.fileno()
            self._require_unchanged(os.fstat(file.fileno()))

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
        """Close the file; reading from it afterwards is a ValueError."""
        self._file.close()
        self._again = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_unchanged(self, now: os.stat_result) -> None:
        first = self._opened
        if (now.st_dev, now.st_ino) != (first.st_dev, first.st_ino):
            found = "another file under its name"
        elif now.st_size != first.st_size:
            found = f"{now.st_size:,}"
        # The time of a change of the inode counts as the time of the content does, which a writer can set back; but a
        # name that the file gains or loses changes it too.
        elif now.st_mtime_ns != first.st_mtime_ns or (
            now.st_ctime_ns != first.st_ctime_ns and now.st_nlink == first.st_nlink
        ):
            found = "the same size, written anew"
        else:
            return
        raise TruncatedError(
            "the file was changed while it was being read",
            file=self.path,
            expected=f"{self.size:,} bytes",
            found=found,
            remedy=_LATER,
        )


def _open(path: Path) -> FileIO:
    """A regular file, open for reading.

    Raises:
        SourceError: nothing is there, it is not a regular file, or it may not be read.
    """
    try:
        _require_regular(path, path.stat())
        # Should a pipe take the file's place here, O_NONBLOCK keeps the open from waiting for a writer.
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from None
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _at_rest(descriptor: int, path: Path) -> os.stat_result:
    """The status of a file that was not written to in the last moment.

    A write sets the file's time first and the bytes then, so that in between the time tells of nothing to come.

    Raises:
        TruncatedError: it is written to all the time.
    """
    for _ in range(_PATIENCE):
        status = os.fstat(descriptor)
        age_ns = time.time_ns() - status.st_mtime_ns
        if not 0 <= age_ns < _MOMENT_NS:
            return status
        time.sleep((_MOMENT_NS - age_ns) / 1e9)
    raise TruncatedError("the file is being written", file=path, remedy=_LATER)


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
    remedy = None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "close files that are open elsewhere in this program, or raise its limit: `ulimit -n` shows it"
    return SourceError(f"cannot be opened: {error.strerror}", file=path, remedy=remedy)
