"""Writes docs/cli.md from the `--help` of rushlight and of each command."""

import os
import subprocess
import sys
from pathlib import Path

from rushlight.cli.app import COMMANDS

INTRODUCTION = """\
# Command line

<!-- Written by docs/make_cli.py; run `just docs` to update it. -->

Results go to stdout; notes, statistics and errors go to stderr. With `--json`, stdout is one JSON value. Results are
written completely, even to a slow reader, or the exit code is not 0. If stderr cannot be written to, the result is
still complete, and the exit code is 2.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | a check failed |
| 2 | wrong usage, invalid input, too little memory or disk space; stderr names the problem and the next step |
| 70 | a defect in rushlight |
| 130 | interrupted |
| 141 | the reader of the output closed the pipe, as `head` does |

`--debug` shows the traceback of an error.
"""


def page() -> str:
    """The document."""
    sections = [("rushlight", [])] + [(f"rushlight {name}", [name]) for name in command_names()]
    return INTRODUCTION + "".join(f"\n## {title}\n\n```text\n{help_text(words)}```\n" for title, words in sections)


def command_names() -> list[str]:
    """The commands in the order of `rushlight --help`."""
    return list(COMMANDS)


def help_text(words: list[str]) -> str:
    """The output of `rushlight WORDS --help` on a terminal of 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "rushlight", *words, "--help"],
        env=environment,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
