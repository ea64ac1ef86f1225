"""Reports the error that ended a command, and maps it to an exit code."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Any

import typer

from rushlight.cli.exit_codes import BAD_INPUT, DEFECT
from rushlight.cli.terminal import out_json, write_err
from rushlight.errors import RushlightError, printable, printable_line, printable_name
from rushlight.host.memory import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

UsageError = typer.BadParameter.__mro__[1]
"""The exception for wrong usage, which has no public name in some releases of Typer."""


def report_error(error: Exception, arguments: Sequence[str]) -> int:
    """Print `error` on stderr, with `--json` also as an object on stdout, with `--debug` after its traceback.

    Returns the exit code. A RushlightError, an OSError, a lack of memory or threads, and an exception in a user's port
    are bad input; any other exception is a defect.
    """
    # Read from the arguments, since errors can occur before they are parsed.
    if "--debug" in arguments:
        write_err(printable("".join(traceback.format_exception(error))).rstrip())
    error = error if isinstance(error, RushlightError) else shortage(error) or error
    if isinstance(error, UsageError):
        code, message, exit_code = "wrong_usage", _usage(error, arguments), BAD_INPUT
    elif isinstance(error, RushlightError | OSError):
        code = error.code if isinstance(error, RushlightError) else "system_error"
        message, exit_code = describe(error), BAD_INPUT
    elif place := _line_of_a_port(error):
        code, exit_code = "port_failed", BAD_INPUT
        what = printable(f"{type(error).__name__}: {error}")
        message = f"{printable_line(str(place[0]))}: line {place[1]} raises {what}"
    else:
        what = printable(f"{type(error).__name__}: {error}")
        code, message, exit_code = (
            "defect",
            f"a defect in rushlight: {what}; please report it with the output of --debug",
            DEFECT,
        )
    if "--json" in arguments:
        out_json({"error": {"code": code, "message": message}})
    write_err(f"error: {message}")
    return exit_code


def describe(error: RushlightError | OSError) -> str:
    """The message of an error of the library or the system."""
    if isinstance(error, RushlightError):
        return str(error)
    name = f"{printable_line(str(error.filename))}: " if error.filename else ""
    return name + printable(str(error.strerror or error))


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """Typer's message in the form of the other errors, with the command whose `--help` to read."""
    if type(error) is typer.BadParameter:
        hint = error.param_hint or (error.param and _name(error.param))
        message = f"{hint}: {error.message}" if hint else error.message
    else:
        message = error.message or error.format_message()
        message = (message[:1].lower() + message[1:]).replace(". Did you mean", "; did you mean")
    if type(error).__name__ == "MissingParameter" and (help_text := getattr(error.param, "help", None)):
        message = f"{message.removesuffix('.')}: {help_text[:1].lower()}{help_text[1:]}"
    if possible := getattr(error, "possibilities", None):
        message = f"{message}; did you mean {' or '.join(sorted(possible))}?"
    for pattern, plain in _PLAIN.items():
        message = re.sub(pattern, plain, message)
    command = error.ctx.command_path if error.ctx else "rushlight"
    if not error.ctx and arguments and not arguments[0].startswith("-"):
        command = f"{command} {arguments[0]}"
    return f"{printable_name(message.removesuffix('.'))} (see `{command} --help`)"


_PLAIN = {
    r"is not a valid int(eger)?\b": "is not an integer",
    r"is not a valid float\b": "is not a number",
    r"^got unexpected extra argument(?:s|\(s\))? \((.*)\)": r"unexpected argument: \1; put text with spaces in quotes",
}
"""Phrases of Typer's messages, as patterns, and what is printed instead."""


def _name(param: Any) -> str:
    return str(param.metavar if param.param_type_name == "argument" else max(param.opts, key=len))


def _line_of_a_port(error: Exception) -> tuple[str, int] | None:
    from rushlight.models.ported import port_line

    return port_line(error.__traceback__)
