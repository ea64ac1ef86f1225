"""Client of a worker process: starts it, sends requests and stops it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent


ANSWER_S = 900
"""The longest wait for an answer: a conversion of a large model takes some minutes."""


class WorkerError(Exception):
    """A worker answered with an error or not at all, or its process exited."""


def environment(threads: int) -> dict[str, str]:
    """Environment variables that set the threads of every library and forbid the network.

    Python may write bytecode, as pip does for what it installs: otherwise each process would compile a source tree.
    """
    variables = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RUSHLIGHT_NUM_THREADS"]
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        **dict.fromkeys(variables, str(threads)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(
            os.pathsep
        ),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Handle:
    """A runtime in its own process, which blocks without using a core until it receives a request."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._process = subprocess.Popen(  # noqa: S603, the command is ours
            [sys.executable, "-m", "benchmarks.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(threads),
            encoding="utf-8",
        )

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises:
            WorkerError: the worker answered with an error or not in time, or its process exited.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
            if not select.select([stdout], [], [], ANSWER_S)[0]:
                self._process.kill()
                raise WorkerError(f"{self._name} did not answer to {do!r} within {ANSWER_S} s")
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker process of {self._name} exited with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Stops the process."""
        with suppress(BrokenPipeError):  # a request that the process did not live to read
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
