"""The file of results: appended line by line, and understood again after whatever ended the job before."""

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
"""A result is in the system's hands at once, and on the disk at the latest so many seconds and one result later."""

_BEGINNING = b'{"index": '
"""Of every result: what a cut line is told by."""


class ResultsFile:
    """Results as lines of JSON, in a file that a later run goes on with.

    Each line is one write, so that a killed process leaves at most the beginning of one. The next result, or the end of
    a job that adds none, takes its place; a job that is refused leaves the file as it was. Memory: some 10 bytes for
    each result.

    Args:
        path: the file; made if there is none.
        force: begin again, whatever the file holds; it keeps that until there is the first result, or the end of a job
            that has none.

    Raises:
        JobError: it is no regular file, not of a batch job, or damaged elsewhere than at its end; or another process
            writes to it.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = Path(path)
        self.n_failed = 0
        """Results that are errors."""
        self.last_index = -1
        """The highest index among the results."""
        self.in_order = True
        """Whether the results stand in the order of the input."""
        self.job: Mapping[str, str] | None = None
        """What the results have in common, by name; None as long as there is no result."""
        self._digests = Digests()
        self._end: int | None = None
        """Where the next result goes, if what the file holds from there on is given up."""
        self._is_new = not self.path.exists()
        if self.path.exists() and not self.path.is_file():
            raise JobError("results go to a regular file", file=self.path, remedy="- is standard output")
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
            self._clear()
        self.close()
        if kind is not None and self._is_new and not len(self):
            self.path.unlink(missing_ok=True)  # nothing came of it, not even an empty job

    def __len__(self) -> int:
        return len(self._digests)

    def digest(self, index: int) -> str | None:
        """The digest of the request whose result is there; None if there is none."""
        number = self._digests.get(index)
        return f"{number:016x}" if number else None

    def append(self, result: ResultLine) -> None:
        """Adds the result of a request."""
        self._clear()
        self._note(result)
        data = memoryview(result.raw)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:  # a full disk knows no names
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from None
        if time.monotonic() - self._synced_s > SYNC_S:
            self._sync()

    def close(self) -> None:
        """Waits until everything is on the disk."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _clear(self) -> None:
        """Takes out what is given up."""
        if self._end is not None:
            self._file.truncate(self._end)
            self._end = None

    def _note(self, result: ResultLine) -> None:
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
                "another process writes to it", file=self.path, remedy="wait for it, or name another file"
            ) from None

    def _recover(self) -> None:
        """Reads the results that are there; a last line that was not written to its end is given up."""
        end = 0
        for number, raw in enumerate(self._lines(), 1):
            is_cut = not raw.endswith(b"\n") and len(raw) < MAX_RESULT_BYTES
            if is_cut and raw[: len(_BEGINNING)] == _BEGINNING[: len(raw)]:
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
                raise JobError(f"line {number} is of another job than those before it", file=self.path, remedy=REMEDY)
            self._note(result)
            end += len(raw)

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while raw := file.readline(MAX_RESULT_BYTES):
                yield raw
