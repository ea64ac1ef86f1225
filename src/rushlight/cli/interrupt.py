"""Ends a command within half a second of Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.exit_codes import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

GRACE_S = 0.4


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Within the block, SIGINT raises KeyboardInterrupt, and ends the process if it still runs after `GRACE_S`.

    Python handles a signal only between two bytecodes of the main thread: not during a long matrix product, and not
    while a thread pool waits for its downloads. So a second thread watches for the signal, unless the limits of the
    process forbid it.
    """
    try:
        reader, writer = os.pipe()
    except OSError:
        yield
        return
    try:
        threading.Thread(target=_exit_after_interrupt, args=(reader,), daemon=True).start()
    except RuntimeError:
        os.close(reader)
        os.close(writer)
        yield
        return
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


@contextmanager
def interrupts_as_exceptions() -> Iterator[None]:
    """Within the block, SIGINT only raises KeyboardInterrupt, for a command that continues after it."""
    watcher = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(watcher, warn_on_full_buffer=False)


class Interrupts:
    """Within the block, SIGINT ends a stream between two of its pieces.

    A KeyboardInterrupt inside a destructor would be lost, so the signal only sets a flag. Before the first piece
    nothing checks the flag, so there SIGINT raises KeyboardInterrupt, as does a second SIGINT.

    Attributes:
        came: whether SIGINT has arrived.
    """

    def __init__(self) -> None:
        self.came = False
        self._begun = False

    def until_interrupted(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces up to SIGINT."""
        for piece in pieces:
            self._begun = True
            yield piece
            if self.came:
                return

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, _number: int, _frame: object) -> None:
        if self.came or not self._begun:
            self.came = True
            raise KeyboardInterrupt
        self.came = True


def _exit_after_interrupt(reader: int) -> None:
    """Read signal numbers from the wakeup pipe until it is closed, and exit after SIGINT."""
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            time.sleep(GRACE_S)
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\n\x1b[?25h")  # a progress bar may have hidden the cursor
            os._exit(INTERRUPTED)
    os.close(reader)
