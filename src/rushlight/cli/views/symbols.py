"""The symbols of the views, in Unicode or ASCII as the output's encoding allows."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Symbols(NamedTuple):
    """Symbols of trees and tables.

    Attributes:
        branch, last, down: guides of a tree: a child, the last child, and the line past the children of another.
        times, to, dot: "times", "up to", and a separator.
        bar, half: a column of a bar, and the end of a bar that is half a column longer.
        passed, failed, propagated, missing: marks of the rows of a table, and of a cell without a value.
    """

    branch: str
    last: str
    down: str
    times: str
    to: str
    dot: str
    bar: str
    half: str
    passed: str
    failed: str
    propagated: str
    missing: str


UNICODE = Symbols("├── ", "└── ", "│   ", "×", "…", "·", "━", "╸", "✓", "✗", "~", "–")
ASCII = Symbols("|-- ", "`-- ", "|   ", "x", "...", "-", "=", "", "ok", "X", "~", "-")


def symbols() -> Symbols:
    """The symbols that the encoding of stdout can represent."""
    try:
        "".join(UNICODE).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII
    return UNICODE
