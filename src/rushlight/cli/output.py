"""The streams of the process, on which a write is whole or an error says that it is not."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

READER_GONE = 141
"""128 + SIGPIPE: what a shell shows for any program whose reader went away."""

CUT_SHORT = 2
"""Bad input, as a full disk is."""


def write_all(descriptor: int, data: Any) -> None:
    """Write all of `data`, however little the descriptor takes at a time, and waiting where it does not block.

    Raises:
        OSError: not all could be written.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            from select import select

            select([], [descriptor], [])


class Output(io.RawIOBase):
    """A standard stream without a buffer.

    Python's own streams drop what a short write leaves over where PYTHONUNBUFFERED is set, and give up where the
    descriptor does not block. After the first error nothing more is written.

    Args:
        descriptor: where to write; None is a closed stream.
        name: the stream's, for errors.
        is_result: whether an error is raised; otherwise what is lost does not end the work on the result.

    Attributes:
        name: as given.
        failed: whether something was lost.
    """

    def __init__(self, descriptor: int | None, name: str, *, is_result: bool) -> None:
        self._descriptor = descriptor
        self.name = name
        self._is_result = is_result
        self.failed = False

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, f"{self.name} is closed")
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write all of `data`.

        Raises:
            OSError: a result cannot be written; only the first time.
            SystemExit: the result's reader went away.
        """
        n_bytes = memoryview(data).nbytes
        if n_bytes and not self.failed:  # of nothing, nothing is lost: so Typer asks what kind of stream this is
            try:
                self._write(data)
            except OSError:
                self.failed = True
                if self._is_result:
                    raise
        return n_bytes

    def _write(self, data: Any) -> None:
        descriptor = self.fileno()
        try:
            write_all(descriptor, data)
        except BrokenPipeError:
            if self._is_result:
                self.failed = True
                sys.exit(READER_GONE)
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


@contextmanager
def complete_output() -> Iterator[None]:
    """Within the block, what is written to the process's own stdout and stderr is whole.

    A note that is lost does not end the command, but the block then ends with exit code `CUT_SHORT` in place of 0.
    """
    previous = sys.stdout, sys.stderr
    outputs = []
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        descriptor = None if sys.stdout is None else sys.stdout.fileno()
        outputs.append(Output(descriptor, "standard output", is_result=True))
        sys.stdout = _text(outputs[-1], sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        outputs.append(Output(sys.stderr.fileno(), "standard error", is_result=False))
        sys.stderr = _text(outputs[-1], sys.stderr)
    try:
        yield
    except SystemExit as end:
        if not end.code and any(output.failed for output in outputs):
            raise SystemExit(CUT_SHORT) from None
        raise
    finally:
        sys.stdout, sys.stderr = previous


def _text(output: Output, previous: io.TextIOBase | None) -> io.TextIOWrapper:
    """Text written to `output` at once; what the encoding lacks is escaped."""
    if previous is not None:
        previous.flush()
    encoding = getattr(previous, "encoding", None) or "utf-8"
    return io.TextIOWrapper(output, encoding, "backslashreplace", write_through=True)
