"""What a user reads when a command fails."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING

from rushlight.backends.memory import shortage
from rushlight.cli.terminal import out, say
from rushlight.errors import RushlightError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2
DEFECT = 70
"""EX_SOFTWARE of sysexits.h: never 1, which says that a check ran and failed."""


def report(error: Exception, arguments: Sequence[str]) -> int:
    """Print `error` on stderr, with `--json` also as an object on stdout, with `--debug` after its traceback.

    Returns the exit code. An OSError is the user's disk or path, so it is bad input, and so are a lack of memory or
    threads and what a user's own model file raises; what nobody foresaw is a defect.
    """
    # Read from the arguments, since an error may come before or outside of their parsing.
    if "--debug" in arguments:
        say(printable("".join(traceback.format_exception(error))).rstrip())
    error = error if isinstance(error, RushlightError) else shortage(error) or error
    if isinstance(error, RushlightError | OSError):
        code = error.code if isinstance(error, RushlightError) else "system_error"
        message, exit_code = in_words(error), BAD_INPUT
    elif place := _line_of_a_port(error):
        code, exit_code = "port_failed", BAD_INPUT
        message = printable(f"{place[0]}: line {place[1]} raises {type(error).__name__}: {error}")
    else:
        what = printable(f"{type(error).__name__}: {error}")
        code, message, exit_code = (
            "defect",
            f"a defect in rushlight: {what}; run it again with --debug, and report it",
            DEFECT,
        )
    if "--json" in arguments:
        out(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False) + "\n")
    say(f"error: {message}")
    return exit_code


def in_words(error: RushlightError | OSError) -> str:
    """What is wrong with the input, the disk or a path."""
    if isinstance(error, RushlightError):
        return str(error)
    return printable(f"{error.filename}: " if error.filename else "") + printable(str(error.strerror or error))


def _line_of_a_port(error: Exception) -> tuple[str, int] | None:
    from rushlight.models.ported import port_line

    return port_line(error.__traceback__)
