"""What a user reads when a command fails."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import typer

from rushlight.cli.terminal import out_json, say
from rushlight.errors import RushlightError, printable, printable_line, printable_name
from rushlight.host.memory import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2
DEFECT = 70
"""EX_SOFTWARE of sysexits.h: never 1, which says that a check ran and failed."""

UsageError = typer.BadParameter.__mro__[1]
"""What Typer raises for wrong usage; it has no public name in all of its releases."""


def report(error: Exception, arguments: Sequence[str]) -> int:
    """Print `error` on stderr, with `--json` also as an object on stdout, with `--debug` after its traceback.

    Returns the exit code. An OSError is the user's disk or path, so it is bad input, and so are a lack of memory or
    threads and what a user's own model file raises; any other exception is a defect.
    """
    # Read from the arguments, since an error may come before or outside of their parsing.
    if "--debug" in arguments:
        say(printable("".join(traceback.format_exception(error))).rstrip())
    error = error if isinstance(error, RushlightError) else shortage(error) or error
    if isinstance(error, UsageError):
        code, message, exit_code = "wrong_usage", _usage(error, arguments), BAD_INPUT
    elif isinstance(error, RushlightError | OSError):
        code = error.code if isinstance(error, RushlightError) else "system_error"
        message, exit_code = in_words(error), BAD_INPUT
    elif place := _line_of_a_port(error):
        code, exit_code = "port_failed", BAD_INPUT
        what = printable(f"{type(error).__name__}: {error}")
        message = f"{printable_line(str(place[0]))}: line {place[1]} raises {what}"
    else:
        what = printable(f"{type(error).__name__}: {error}")
        code, message, exit_code = (
            "defect",
            f"a defect in rushlight: {what}; run it again with --debug, and report it",
            DEFECT,
        )
    if "--json" in arguments:
        out_json({"error": {"code": code, "message": message}})
    say(f"error: {message}")
    return exit_code


def in_words(error: RushlightError | OSError) -> str:
    """What is wrong with the input, the disk or a path."""
    if isinstance(error, RushlightError):
        return str(error)
    name = f"{printable_line(str(error.filename))}: " if error.filename else ""
    return name + printable(str(error.strerror or error))


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """Typer's message in the form of every other one, and where to read more."""
    if type(error) is typer.BadParameter:
        hint = error.param_hint or (error.param and _name(error.param))
        message = f"{hint}: {error.message}" if hint else error.message
    else:
        message = error.message or error.format_message()
        message = (message[:1].lower() + message[1:]).replace(". Did you mean", "; did you mean")
    if possible := getattr(error, "possibilities", None):
        message = f"{message}; did you mean {' or '.join(sorted(possible))}?"
    command = error.ctx.command_path if error.ctx else " ".join(["rushlight", *arguments[:1]])
    return f"{printable_name(message.removesuffix('.'))} (see `{command} --help`)"


def _name(param: Any) -> str:
    return str(param.metavar if param.param_type_name == "argument" else max(param.opts, key=len))


def _line_of_a_port(error: Exception) -> tuple[str, int] | None:
    from rushlight.models.ported import port_line

    return port_line(error.__traceback__)
