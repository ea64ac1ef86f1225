"""Ctrl-C ends a command within half a second, whatever it is doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

INTERRUPTED = 130
GRACE_S = 0.4


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Within the block, SIGINT ends the process: as usual where that takes less than `GRACE_S`, and then at once.

    Python itself acts on a signal between two bytecodes of the main thread: not inside a long matrix product, and not
    while the end of a thread pool waits for its downloads. So a second thread watches for the signal too, where the
    limits of the process leave room for one.
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
    """Within the block, SIGINT is a KeyboardInterrupt and nothing more, for a command that goes on after it."""
    watcher = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(watcher, warn_on_full_buffer=False)


class Interrupts:
    """Within the block, SIGINT ends a text between two of its pieces, wherever in the work on one it arrives.

    An exception may be raised where nothing can be done with it, as in a destructor, and is then lost. Before the first
    piece there is nothing to look at the note, so there SIGINT is a KeyboardInterrupt, as is a second one.

    Attributes:
        came: whether there was one.
    """

    def __init__(self) -> None:
        self.came = False
        self._begun = False

    def passing(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces, as far as they come before SIGINT does."""
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
    """Read the numbers of the signals that arrive, until the other end is closed."""
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            time.sleep(GRACE_S)
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\n\x1b[?25h")  # a progress bar may have hidden the cursor
            os._exit(INTERRUPTED)
    os.close(reader)
