"""The results file of a job: append-only, and recoverable after a crash."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import JobError
from rushlight.jobs.digests import Digests
from rushlight.jobs.result_line import MAX_RESULT_BYTES, REMEDY, ResultLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO, Self

SYNC_S = 5.0
"""Every result is written immediately; it is synced to disk with the first result after this many seconds."""

_PREFIX = b'{"index": '
"""Every result starts with it, so a truncated line can be recognised."""


class ResultsFile:
    """A file of results as lines of JSON, which a later run can resume.

    Each line is a single write, so a killed process leaves at most one truncated line. The next result replaces it, or
    the end of a job without new results removes it; a refused job leaves the file unchanged. Memory: about 10 bytes
    per result.

    Args:
        path: the file, created if missing.
        force: start over; the old content is kept until the first result, or the end of a job without results.

    Raises:
        JobError: not a regular file, not a results file, or damaged before its last line; or another process is
            writing to it.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = Path(path)
        self.n_failed = 0
        """Number of results that are errors."""
        self.last_index = -1
        """The highest index of a result."""
        self.in_order = True
        """Whether the results are in the order of the input."""
        self.job: Mapping[str, str] | None = None
        """The identity of the job of the results; None without results."""
        self._digests = Digests()
        self._end: int | None = None
        """Where to truncate the file before the next result, if its end is to be discarded."""
        self._is_new = not self.path.exists()
        if self.path.exists() and not self.path.is_file():
            raise JobError("not a regular file", file=self.path, remedy="use - for standard output")
        self._file: BinaryIO = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            if force:
                self._end = 0
            else:
                self._recover()
        except BaseException:
            self._file.close()
            raise
        self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._truncate()
        self.close()
        if kind is not None and self._is_new and not len(self):
            self.path.unlink(missing_ok=True)  # a failed job without results leaves no new file

    def __len__(self) -> int:
        return len(self._digests)

    def digest(self, index: int) -> str | None:
        """The digest of the request of a result; None if there is no result."""
        number = self._digests.get(index)
        return f"{number:016x}" if number else None

    def append(self, result: ResultLine) -> None:
        """Appends a result."""
        self._truncate()
        self._add(result)
        data = memoryview(result.raw)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:  # the error of a write has no file name
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from None
        if time.monotonic() - self._synced_s > SYNC_S:
            self._sync()

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _truncate(self) -> None:
        """Removes the end of the file that is to be discarded."""
        if self._end is not None:
            self._file.truncate(self._end)
            self._end = None

    def _add(self, result: ResultLine) -> None:
        if self.job is None:
            self.job = result.job
        self._digests.set(result.index, int(result.request, 16))
        self.in_order &= result.index > self.last_index
        self.last_index = max(self.last_index, result.index)
        self.n_failed += result.is_error

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(
                "another process is writing to it", file=self.path, remedy="wait for it, or choose another file"
            ) from None

    def _recover(self) -> None:
        """Reads the existing results; a truncated last line is to be discarded."""
        end = 0
        for number, raw in enumerate(self._lines(), 1):
            is_truncated = not raw.endswith(b"\n") and len(raw) < MAX_RESULT_BYTES
            if is_truncated and raw[: len(_PREFIX)] == _PREFIX[: len(raw)]:
                self._end = end
                return
            result = ResultLine.parse(raw)
            if result is None or self.digest(result.index) is not None:
                raise JobError(
                    f"line {number} is not a result of rushlight batch",
                    file=self.path,
                    remedy=REMEDY,
                )
            if self.job not in (None, result.job):
                raise JobError(
                    f"line {number} belongs to another job than the lines before it", file=self.path, remedy=REMEDY
                )
            self._add(result)
            end += len(raw)

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while raw := file.readline(MAX_RESULT_BYTES):
                yield raw
