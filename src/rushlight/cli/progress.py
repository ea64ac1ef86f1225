"""A progress bar on stderr, for whoever watches; a pipe or a log gets nothing of it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rushlight.cli.terminal import stderr_console

if TYPE_CHECKING:
    from collections.abc import Iterator


class Update(Protocol):
    """Shows how far it is."""

    def __call__(self, completed: int, note: str) -> None: ...


@contextmanager
def progress_bar(title: str, total: int | None, *, done: int = 0) -> Iterator[Update]:
    """Draw a bar while the block runs, with what is done, a note, and the time that is left; nothing is left of it.

    Args:
        title: what is being done.
        total: in any unit; None where it is not known, and then there is no time left to tell.
        done: of the total, before the block: counted as done and not as fast.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield _unseen
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True, refresh_per_second=5) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def update(completed: int, note: str) -> None:
            progress.update(task, completed=completed, note=note)

        yield update


def _unseen(completed: int, note: str) -> None:
    """Nobody watches."""
