"""The command line. The `rushlight` script calls `main`; each command is a file in `commands/`."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from rushlight.cli.exit_codes import BAD_INPUT, INTERRUPTED
from rushlight.cli.interrupt import exit_on_interrupt
from rushlight.cli.output import complete_output
from rushlight.cli.resource_limits import adapt_to_resource_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments`, by default those of the process, and exit.

    `rushlight.cli.exit_codes` lists the exit codes. Errors go to stderr, with the traceback under `--debug`.
    """
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with exit_on_interrupt(), complete_output():
            _run(arguments, is_program)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run(arguments: Sequence[str], is_program: bool) -> None:
    try:
        # Imported here, so that an interrupt during these imports prints no traceback either.
        if is_program:  # imports are never garbage, and collecting them would take a seventh of `--help`
            adapt_to_resource_limits()
            gc.disable()
        from rushlight.cli.app import app

        if is_program:
            gc.freeze()
            gc.enable()
        sys.exit(app(arguments, prog_name="rushlight", standalone_mode=False))
    except Exception as error:  # reported in one line, whatever it is
        sys.exit(_report(error, arguments))


def _report(error: Exception, arguments: Sequence[str]) -> int:
    try:
        from rushlight.cli.error_report import report_error

        return report_error(error, arguments)
    except (MemoryError, ImportError, OSError) as another:
        # A lack of memory or files may prevent the import of the report: this one needs no import.
        causes = [f"{type(each).__name__}: {each}".removesuffix(": ") for each in (error, another)]
        lacking = "memory" if any("emory" in cause for cause in causes) else "memory or open files"
        if sys.stderr is not None:
            sys.stderr.write(f"error: out of {lacking} ({', then '.join(causes)})\n")
        return BAD_INPUT
