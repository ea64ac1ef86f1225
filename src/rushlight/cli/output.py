"""Standard streams that write everything or raise an error, and never lose a part silently."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rushlight.cli.exit_codes import BAD_INPUT, BROKEN_PIPE

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_all(descriptor: int, data: Any) -> None:
    """Write all of `data`, with several writes if needed, waiting for a non-blocking descriptor.

    Raises:
        OSError: the data could not be written completely.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            from select import select

            select([], [descriptor], [])


class Output(io.RawIOBase):
    """An unbuffered standard stream.

    Python's own streams lose the rest of a short write if PYTHONUNBUFFERED is set, and fail on a non-blocking
    descriptor. After the first error nothing more is written.

    Args:
        descriptor: the file descriptor; None is a closed stream.
        name: the name of the stream in errors.
        is_result: whether errors are raised; otherwise they are ignored, so that they do not end the command.

    Attributes:
        name: as given.
        failed: whether output was lost.
    """

    def __init__(self, descriptor: int | None, name: str, *, is_result: bool) -> None:
        self._descriptor = descriptor
        self.name = name
        self._is_result = is_result
        self.failed = False

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, f"{self.name} is closed")
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write all of `data`.

        Raises:
            OSError: a result cannot be written; only the first time.
            SystemExit: the reader of a result closed its pipe.
        """
        n_bytes = memoryview(data).nbytes
        if n_bytes and not self.failed:  # Typer probes the stream with an empty write
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
                sys.exit(BROKEN_PIPE)
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


@contextmanager
def complete_output() -> Iterator[None]:
    """Within the block, stdout and stderr of the process lose no output.

    Losing output on stderr does not end the command, but the block then exits with `BAD_INPUT` instead of 0.
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
            raise SystemExit(BAD_INPUT) from None
        raise
    finally:
        sys.stdout, sys.stderr = previous


def _text(output: Output, previous: io.TextIOBase | None) -> io.TextIOWrapper:
    """An unbuffered text stream on `output`; characters outside its encoding are escaped."""
    if previous is not None:
        previous.flush()
    encoding = getattr(previous, "encoding", None) or "utf-8"
    return io.TextIOWrapper(output, encoding, "backslashreplace", write_through=True)
