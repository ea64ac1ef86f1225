"""A sign that a long prompt is being read, until the first piece of text is there."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol

from rushlight.cli.terminal import erase_status, is_watched, show_status

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAY_S = 0.3
"""A prompt that is read sooner needs no sign."""
EVERY_S = 0.2


class Pieces(Protocol):
    """A text as it is generated: a `Stream` or an `Answer`."""

    @property
    def prompt_progress(self) -> tuple[int, int]: ...
    def __iter__(self) -> Iterator[str]: ...


def with_prompt_progress(text: Pieces) -> Iterator[str]:
    """The pieces of the text; until the first is there, stderr's terminal shows how much of the prompt is read."""
    pieces = iter(text)
    with _sign(text):
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


@contextmanager
def _sign(text: Pieces) -> Iterator[None]:
    if not is_watched():
        yield
        return
    begun = Event()
    thread = Thread(target=_draw, args=(text, begun), daemon=True)
    thread.start()
    try:
        yield
    finally:
        begun.set()
        thread.join()  # it erases what it drew


def _draw(text: Pieces, begun: Event) -> None:
    if begun.wait(DELAY_S):
        return
    while True:
        done, total = text.prompt_progress
        show_status(f"reading {total:,} tokens ... {done / total:.0%}")
        if begun.wait(EVERY_S):
            erase_status()
            return
