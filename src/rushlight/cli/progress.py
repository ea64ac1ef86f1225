"""Progress bars on stderr, if it is a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.terminal import stderr_console, stderr_is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NARROW = 76
"""Below this width there is no bar."""
VERY_NARROW = 52
"""Below this width there is no time either."""


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int, str], object]]:
    """Show a progress bar with a note and the remaining time while the block runs; it is erased afterwards.

    Yields a function that takes the amount done and the note.

    Args:
        title: of the bar.
        total: in any unit; None if unknown, which leaves out the remaining time.
    """
    if not stderr_is_terminal():
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
def reading(n_bytes: int, *, visible: bool = True) -> Iterator[Callable[[int], object]]:
    """Show a progress bar of bytes while the block runs; yields a function that takes the number of bytes read."""
    if not (visible and stderr_is_terminal()):
        yield lambda _more: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        task = progress.add_task("reading", total=n_bytes)
        yield lambda more: progress.advance(task, more)
