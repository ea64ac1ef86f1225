"""What a fresh process costs: time to its first output, and its peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAUNCHER = Path(__file__).with_name("launcher.py")


class Run(NamedTuple):
    """A process that was run to its end.

    Attributes:
        first_output_s: seconds from its start to its first byte on stdout; None if it wrote none.
        total_s: seconds from its start to its end.
        peak_bytes: the most memory it had resident.
        exit_code: negative for a signal.
        errors: what it wrote on stderr.
    """

    first_output_s: float | None
    total_s: float
    peak_bytes: int
    exit_code: int
    errors: str


def run_fresh(
    command: Sequence[str], stdin: str = "", *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Run:
    """Runs a command in a fresh process and waits for its end.

    Args:
        command: the program and its arguments.
        stdin: what it reads.
        env, cwd: its environment and working directory, by default this process's own.

    Raises:
        OSError: there is no such program.
    """
    done = subprocess.run(  # noqa: S603, what is run is the caller's own command
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
    return Run(**json.loads(done.stdout), errors=done.stderr)
