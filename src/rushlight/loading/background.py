"""Runs a call on a daemon thread while the calling thread continues."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["BackgroundCall"]


class BackgroundCall:
    """A call on a daemon thread, and the resources to close when it returns.

    Not a ThreadPoolExecutor: the interpreter joins its threads at exit, so that Ctrl-C during loading would end the
    process only after all weights are read. If no thread can be started, the call runs in the constructor.
    """

    def __init__(self, call: Callable[[], None], resources: ExitStack) -> None:
        self._call, self._resources = call, resources
        self._error: BaseException | None = None
        self._thread: Thread | None = Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            self._run()

    def _run(self) -> None:
        try:
            with self._resources:
                self._call()
        except BaseException as error:  # raised again by `join`
            self._error = error

    def join(self) -> None:
        """Waits for the call to return, and raises its exception."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
