"""The command line, one file a command: flags, printing and exit codes. The `rushlight` script calls `main`."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from rushlight.cli.interrupt import INTERRUPTED, exit_on_interrupt
from rushlight.cli.output import CUT_SHORT, complete_output
from rushlight.cli.resource_limits import adapt_to_resource_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments`, by default the process's own, and exit.

    Exit codes: 0 done; 1 a check failed; 2 wrong usage or bad input; 70 a defect in rushlight; 130 interrupted; 141
    whoever read the output went away. What went wrong is said on stderr, with its traceback if `--debug` asks for it.
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
        # Imported here, so that an interrupt during these imports is as quiet as a later one.
        if is_program:  # what is imported stays to the end: looking through it for garbage is a seventh of `--help`
            adapt_to_resource_limits()
            gc.disable()
        from rushlight.cli.app import app

        if is_program:
            gc.freeze()
            gc.enable()
        sys.exit(app(arguments, prog_name="rushlight", standalone_mode=False))
    except Exception as error:  # the last place where one can be said in a line
        sys.exit(_report(error, arguments))


def _report(error: Exception, arguments: Sequence[str]) -> int:
    try:
        from rushlight.cli.error_report import report

        return report(error, arguments)
    except (MemoryError, ImportError, OSError) as another:
        # What left no room to work may leave none to look into it: what is printed here was there from the beginning.
        causes = [f"{type(each).__name__}: {each}".removesuffix(": ") for each in (error, another)]
        lacking = "memory" if any("emory" in cause for cause in causes) else "memory or open files"
        if sys.stderr is not None:
            sys.stderr.write(f"error: too little {lacking} to go on ({', then '.join(causes)})\n")
        return CUT_SHORT
