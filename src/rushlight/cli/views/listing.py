"""A table whose last column wraps.

    model                                type   size       here
    HuggingFaceTB/SmolLM2-135M-Instruct  llama  257.0 MiB  fits in bf16

On a terminal that is too narrow for it, a row becomes a line with its details below:

    HuggingFaceTB/SmolLM2-135M-Instruct
      llama  257.0 MiB  fits in bf16
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from rich.text import Text

from rushlight.cli.terminal import stdout_console

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Console

GAP = 2
MIN_LAST = 24
"""The width below which the last column does not wrap, unless all of it fits."""


def listing(
    heads: Sequence[str],
    rows: Sequence[Text | Sequence[Text]],
    *,
    numbers: Collection[str] = (),
    console: Console | None = None,
) -> Text:
    """The rows under their heads, in the width of stdout.

    Args:
        heads: the title of each column.
        rows: a cell for each column; or a single text, a heading that takes a line of its own.
        numbers: the columns to align to the right.
        console: the console that shows it.
    """
    console = stdout_console() if console is None else console
    cells = [row for row in rows if not isinstance(row, Text)]
    top = [Text(head, "dim") for head in heads]
    widths = [max(cell.cell_len for cell in column) for column in zip(top, *cells, strict=True)]
    room = console.width - sum(widths[:-1]) - GAP * (len(heads) - 1)
    is_wide = room >= min(widths[-1], MIN_LAST)
    lines = []
    for row in chain([top] if is_wide else [], rows):
        if isinstance(row, Text):
            lines += _wrapped(row, console.width, console)
        elif is_wide:
            lines += _aligned(row, heads, widths, numbers, room, console)
        else:
            lines += _stacked(row, console)
    return Text("\n").join(lines)


def _aligned(
    row: Sequence[Text],
    heads: Sequence[str],
    widths: Sequence[int],
    numbers: Collection[str],
    room: int,
    console: Console,
) -> list[Text]:
    line = Text()
    for head, cell, width in zip(heads[:-1], row[:-1], widths[:-1], strict=True):
        pad = " " * (width - cell.cell_len)
        line.append_text(Text(pad) + cell if head in numbers else cell + Text(pad))
        line.append(" " * GAP)
    first, *more = _wrapped(row[-1], room, console) or [Text()]
    line.append_text(first)
    line.rstrip()
    indent = Text(" " * (sum(widths[:-1]) + GAP * (len(heads) - 1)))
    return [line, *(indent + part for part in more)]


def _stacked(row: Sequence[Text], console: Console) -> list[Text]:
    first, *others = row
    indent = Text(" " * (GAP + len(first.plain) - len(first.plain.lstrip())))
    details = Text(" " * GAP).join([cell for cell in others if cell.plain])
    below = _wrapped(details, max(console.width - len(indent), 1), console)
    return [*_wrapped(first, console.width, console), *(indent + line for line in below)]


def _wrapped(text: Text, width: int, console: Console) -> list[Text]:
    lines = list(text.wrap(console, width, overflow="fold"))
    for line in lines:
        line.rstrip()
    return lines
