"""Writes results to stdout, and messages, notes and status lines to stderr."""

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
"""Width for output to a pipe, which is never wrapped or cut."""

ERASE_LINE = "\r\x1b[2K"

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that control a terminal or reorder its output: control characters except tabs and newlines, Unicode's line
and paragraph separators, and its bidirectional embeddings, overrides and isolates."""


def out(text: str) -> None:
    """Write `text` to stdout without buffering; complete, or an error (see `rushlight.cli.output`)."""
    sys.stdout.write(text)
    sys.stdout.flush()


def out_text(text: str) -> None:
    """As `out`, for text of a model or a user: on a terminal its control characters are escaped."""
    out(visible(text) if sys.stdout is not None and sys.stdout.isatty() else text)


def out_json(value: object, *, indent: int | None = None) -> None:
    """Write a JSON value and a newline; on a terminal control characters are escaped as JSON does."""
    import json  # not for --help

    out_json_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def out_json_text(text: str) -> None:
    """As `out_json`, for serialised JSON with its newlines."""
    to_terminal = sys.stdout is not None and sys.stdout.isatty()
    out(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if to_terminal else text)


def visible(text: str) -> str:
    """`text` with control characters escaped, so that model output cannot control the terminal."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def show(renderable: RenderableType) -> None:
    """Print a Rich object on stdout: coloured and fitted to a terminal, plain and unwrapped in a pipe."""
    console = stdout_console()
    with console.capture() as captured:
        console.print(renderable, soft_wrap=True)
    out(captured.get())


def stdout_console() -> Console:
    """A Rich console on stdout. It parses no markup, since names come from files."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else UNBOUNDED
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def stderr_console() -> Console:
    """A Rich console on stderr, for progress bars. It parses no markup."""
    from rich.console import Console

    return Console(file=sys.stderr, stderr=True, markup=False, emoji=False, highlight=False)


def write_err(text: str) -> None:
    """Write a line to stderr, if it is open."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write_message(text: str) -> None:
    """As `write_err`, wrapped between words on a terminal; for sentences, not for text to be copied."""
    write_err(wrapped(text, columns(sys.stderr)) if stderr_is_terminal() else text)


def note(text: str) -> None:
    """Write a note to stderr."""
    write_message(f"note: {text}")


def stderr_is_terminal() -> bool:
    """Whether a person sees stderr while the command runs."""
    return sys.stderr is not None and sys.stderr.isatty()


def columns(stream: TextIO) -> int:
    """The current width of the terminal of a stream."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` on stderr while the block runs, if stderr is a terminal; it is erased afterwards."""
    if stderr_is_terminal():
        show_status(f"{text} ...")
    try:
        yield
    finally:
        erase_status()


def show_status(text: str) -> None:
    """Replace the status line on stderr.

    A text wider than the terminal loses its middle, since only one row can be erased.
    """
    row = shortened(printable_name(text), columns(sys.stderr) - 1)
    print(f"{ERASE_LINE}{row}", end="", file=sys.stderr, flush=True)


def erase_status() -> None:
    """Erase the status line, if stderr is a terminal."""
    if stderr_is_terminal():
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
