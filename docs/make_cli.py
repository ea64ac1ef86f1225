"""Writes docs/cli.md from what `rushlight --help` and each command's `--help` print."""

import os
import subprocess
import sys
from pathlib import Path

from rushlight.cli.app import COMMANDS

INTRODUCTION = """\
# Command line

<!-- Written by docs/make_cli.py; `just docs` writes it again. -->

Results go to stdout; notes, statistics and errors to stderr. What `--json` prints is one JSON value on stdout. A result
is written to its end, however slowly it is read, or the exit code is not 0; where stderr cannot be written to, the
result is still whole, and the exit code 2.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check failed |
| 2 | wrong usage, bad input, too little memory or disk: a line on stderr says what, where, and what to do next |
| 70 | a defect in rushlight |
| 130 | interrupted |
| 141 | whoever read the output went away, as `head` does |

An error prints no traceback; `--debug` shows it.
"""


def page() -> str:
    """The whole document."""
    sections = [("rushlight", [])] + [(f"rushlight {name}", [name]) for name in command_names()]
    return INTRODUCTION + "".join(f"\n## {title}\n\n```text\n{help_text(words)}```\n" for title, words in sections)


def command_names() -> list[str]:
    """The commands, in the order `rushlight --help` lists them."""
    return list(COMMANDS)


def help_text(words: list[str]) -> str:
    """What `rushlight WORDS --help` prints on a terminal of 100 columns."""
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
