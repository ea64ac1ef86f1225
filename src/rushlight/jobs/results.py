"""The file of results: appended line by line, and understood again after whatever ended the job before."""

from __future__ import annotations

import json
import os
import re
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.errors import JobError
from rushlight.jobs.lines import MAX_LINE_BYTES
from rushlight.strict_json import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Self

SYNC_S = 5.0
"""A result is in the system's hands at once, and on the disk at the latest so many seconds and one result later."""

MAX_RESULT_BYTES = 8 * MAX_LINE_BYTES
"""More than any result has, its prompt in it and every character escaped."""

MAX_LINES = 1 << 28
"""A result of a later line is none that a job wrote."""

_BEGINNING = b'{"index": '
"""Of every result: what a cut line is told by."""


class ResultsFile:
    """Results as lines of JSON, in a file that a later run goes on with.

    Each line is one write, so that a killed process leaves at most the beginning of one; opening the file cuts that
    off. Memory: 8 bytes for each line of the input.

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
        self._digests = array("Q")
        self._is_new = not self.path.exists()
        if self.path.exists() and not self.path.is_file():
            raise JobError("results go to a regular file", file=self.path, remedy="- is standard output")
        self._file: BinaryIO = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._holds_others = force
            if not force:
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
        return len(self._digests) - self._digests.count(0)

    def digest(self, index: int) -> str | None:
        """The digest of the request whose result is there; None if there is none."""
        number = self._digests[index] if index < len(self._digests) else 0
        return f"{number:016x}" if number else None

    def append(self, record: dict[str, Any]) -> None:
        """Adds the result of a request; `record` begins with "index" and has its digest under "request"."""
        self._clear()
        self._note(record)
        data = memoryview(json.dumps(record, ensure_ascii=False).encode() + b"\n")
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
        """Takes out what `force` gives up."""
        if self._holds_others:
            self._file.truncate(0)
            self._holds_others = False

    def _note(self, record: dict[str, Any]) -> None:
        index = record["index"]
        if index >= len(self._digests):
            self._digests.extend([0] * (index + 1 - len(self._digests)))
        self._digests[index] = int(record["request"], 16)
        self.in_order &= index > self.last_index
        self.last_index = max(self.last_index, index)
        self.n_failed += "error" in record

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
        """Reads the results that are there, and cuts a last line that was not written to its end."""
        end = 0
        for number, raw in enumerate(self._lines(), 1):
            is_cut = not raw.endswith(b"\n") and len(raw) < MAX_RESULT_BYTES
            if is_cut and raw[: len(_BEGINNING)] == _BEGINNING[: len(raw)]:
                self._file.truncate(end)
                return
            record = _parsed(raw)
            if record is None or self.digest(record["index"]) is not None:
                raise JobError(
                    f"line {number} is not a result of rushlight batch",
                    file=self.path,
                    remedy="name another file with -o, or begin this one again with --force",
                )
            self._note(record)
            end += len(raw)

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while raw := file.readline(MAX_RESULT_BYTES):
                yield raw


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The result that a line holds; None if it holds none."""
    try:
        record = parse_json_object(raw, file="result", error=JobError)
    except JobError:
        return None
    index, digest = record.get("index"), record.get("request")
    is_one = (
        type(index) is int
        and 0 <= index < MAX_LINES
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{16}", digest)
        and int(digest, 16)
    )
    return record if is_one else None
