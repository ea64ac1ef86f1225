"""Shows the progress of a long prefill until the first piece of output."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol, TypeVar

from rushlight.cli.terminal import erase_status, show_status, stderr_is_terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

DELAY_S = 0.3
"""A shorter prefill shows nothing."""
INTERVAL_S = 0.2


class HasProgress(Protocol):
    """Streamed output: a `Stream` or an `Answer`."""

    @property
    def prompt_progress(self) -> tuple[int, int]: ...


def with_prompt_progress(stream: HasProgress, pieces: Iterable[T]) -> Iterator[T]:
    """The pieces of a stream; before the first one, the terminal on stderr shows the progress of the prefill."""
    rest = iter(pieces)
    with _showing(stream):
        first = next(rest, None)
    if first is not None:
        yield first
        yield from rest


@contextmanager
def _showing(stream: HasProgress) -> Iterator[None]:
    if not stderr_is_terminal():
        yield
        return
    begun = Event()
    thread = Thread(target=_draw, args=(stream, begun), daemon=True)
    thread.start()
    try:
        yield
    finally:
        begun.set()
        thread.join()  # it erases its status line


def _draw(stream: HasProgress, begun: Event) -> None:
    if begun.wait(DELAY_S):
        return
    while True:
        done, total = stream.prompt_progress
        show_status(f"processing {total:,} prompt tokens ... {done / total:.0%}")
        if begun.wait(INTERVAL_S):
            erase_status()
            return
