"""The two streams: results on stdout, and what is said about them on stderr."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.word_wrap import shortened, wrapped
from rushlight.errors import printable_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from rich.console import Console, RenderableType

UNBOUNDED = 100_000
"""Columns of a pipe: nothing in it is wrapped or cut."""

ERASE_LINE = "\r\x1b[2K"

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What drives a terminal or reorders what it shows: control characters but tabs and newlines, Unicode's line and
paragraph separators, and its bidirectional embeddings, overrides and isolates."""


def out(text: str) -> None:
    """Write `text` to stdout at once, and whole: see `rushlight.cli.output`."""
    sys.stdout.write(text)
    sys.stdout.flush()


def out_text(text: str) -> None:
    """As `out`, for what a model or a user wrote: at a terminal its control characters are escaped."""
    out(visible(text) if sys.stdout is not None and sys.stdout.isatty() else text)


def out_json(value: object, *, indent: int | None = None) -> None:
    """Write a JSON value and a newline; at a terminal without control characters, by JSON's own escapes."""
    import json  # not for --help

    out_json_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def out_json_text(text: str) -> None:
    """As `out_json`, for JSON that is text already, with its newlines."""
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    out(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if at_terminal else text)


def visible(text: str) -> str:
    """`text` with control characters escaped, so that what a model writes cannot drive the terminal."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


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


def say_wrapped(text: str) -> None:
    """As `say`, at a terminal broken between words; for sentences, not for what is to be copied."""
    say(wrapped(text, columns(sys.stderr)) if is_watched() else text)


def is_watched() -> bool:
    """Whether a person can see stderr as it is written."""
    return sys.stderr is not None and sys.stderr.isatty()


def columns(stream: TextIO) -> int:
    """The width of the terminal behind the stream, now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` on stderr while the block runs, if a person is watching; nothing is left of it afterwards."""
    if is_watched():
        show_status(f"{text} ...")
    try:
        yield
    finally:
        erase_status()


def show_status(text: str) -> None:
    """Put `text` on the row of stderr's terminal, in place of what is there.

    It is never more than a row, since a second one would stay when it is erased: its middle is left out.
    """
    row = shortened(printable_name(text), columns(sys.stderr) - 1)
    print(f"{ERASE_LINE}{row}", end="", file=sys.stderr, flush=True)


def erase_status() -> None:
    """Erase the row of stderr's terminal, if there is one."""
    if is_watched():
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
