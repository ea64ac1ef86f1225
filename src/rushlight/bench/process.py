"""Runs a command in a fresh process and measures its time to first output and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAUNCHER = Path(__file__).with_name("launcher.py")


class ProcessResult(NamedTuple):
    """The exit code, times and memory of a finished process.

    Attributes:
        first_output_s: seconds from its start to its first byte on stdout; None without output.
        total_s: seconds from its start to its exit.
        peak_bytes: peak resident memory.
        exit_code: negative for a signal.
        errors: its output on stderr.
    """

    first_output_s: float | None
    total_s: float
    peak_bytes: int
    exit_code: int
    errors: str


def run_fresh(
    command: Sequence[str], stdin: str = "", *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> ProcessResult:
    """Runs a command in a fresh process and waits for it.

    Args:
        command: the program and its arguments.
        stdin: its standard input.
        env, cwd: its environment and working directory; by default those of this process.

    Raises:
        OSError: the program does not exist.
    """
    done = subprocess.run(  # noqa: S603, the caller chooses the command
        [sys.executable, "-I", "-S", str(LAUNCHER), *command],
        input=stdin,
        env=env,
        cwd=cwd,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise OSError(f"could not run {command[0]}: {done.stderr.strip().splitlines()[-1:]}")
    return ProcessResult(**json.loads(done.stdout), errors=done.stderr)
