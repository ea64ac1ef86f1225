"""The two streams: results on stdout, and what is said about them on stderr."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

UNBOUNDED = 100_000
"""Columns of a pipe: nothing in it is wrapped or cut."""

ERASE_LINE = "\r\x1b[2K"


def out(text: str) -> None:
    """Write `text` to stdout at once, and whole: see `rushlight.cli.output`."""
    sys.stdout.write(text)
    sys.stdout.flush()


def show(renderable: RenderableType) -> None:
    """Print a Rich object on stdout: coloured and as wide as the terminal, or plain and uncut where there is none."""
    console = stdout_console()
    with console.capture() as captured:
        console.print(renderable, soft_wrap=True)
    out(captured.get())


def stdout_console() -> Console:
    """Rich's view of stdout. Nothing printed on it is read as markup: names come from files."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else UNBOUNDED
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def stderr_console() -> Console:
    """Rich's view of stderr, for progress; nothing printed on it is read as markup."""
    from rich.console import Console

    return Console(file=sys.stderr, stderr=True, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """A line on stderr, if there is a stderr."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` on stderr while the block runs, if a person is watching; nothing is left of it afterwards."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    if watched:
        print(f"{printable(text)} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if watched:
            print(ERASE_LINE, end="", file=sys.stderr, flush=True)
