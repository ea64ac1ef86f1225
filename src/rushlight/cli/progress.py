"""Progress bars on stderr, for whoever watches; a pipe or a log gets nothing of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.terminal import is_watched, stderr_console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NARROW = 76
"""Columns below which there is no room for a bar."""
VERY_NARROW = 52
"""Columns below which there is none for the time either."""


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int, str], object]]:
    """Draw a bar while the block runs, with what is done, a note, and the time that is left; nothing is left of it.

    Yields what is told how much is done, and the note.

    Args:
        title: what is being done.
        total: in any unit; None where it is not known, and then there is no time left to tell.
    """
    if not is_watched():
        yield lambda _done, _note: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr_console()
    bar = [BarColumn(bar_width=24)] if console.width >= NARROW else []
    time = [TimeElapsedColumn()] if total is None else [TimeRemainingColumn(), TextColumn("left", style="dim")]
    columns = (
        TextColumn("{task.description}", markup=False),
        *bar,
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        *(time if console.width >= VERY_NARROW else []),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as progress:
        task = progress.add_task(title, total=total, note="")

        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def reading(n_bytes: int, *, watch: bool = True) -> Iterator[Callable[[int], object]]:
    """Draw a bar of bytes while the block reads them; yields what is told of each more that are read."""
    if not (watch and is_watched()):
        yield lambda _more: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        task = progress.add_task("reading", total=n_bytes)
        yield lambda more: progress.advance(task, more)
