"""Rendering chat templates in bounded time and memory: in a process of their own, which is ended when it takes more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rushlight.errors import RequestError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

__all__ = ["CPU_S", "MEMORY_BYTES", "WALL_S", "TemplateSandbox"]

MEMORY_BYTES = 128_000_000
"""The address space of the process, Python and Jinja (25 MB) included. Linux holds to it; macOS and Windows do not."""
CPU_S = 0.5
"""The processor time of one rendering, where the system has such a timer: a slow machine does not shorten it."""
WALL_S = 5.0
"""The time of one rendering by the clock, wherever it runs: what bounds it on Windows."""
MAX_ANSWER_BYTES = 16 << 20
"""Two texts of `sandbox_worker.MAX_TEXT_CHARS`, each character at its longest in JSON."""

WORKER = Path(__file__).with_name("sandbox_worker.py")
OTHER_TEMPLATE = "give another one with --chat-template FILE, or template= in Python"
KEPT_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What Python may need to start. The rest, with whatever secrets it holds, stays here."""


class TemplateSandbox:
    """A process that renders templates, started at the first need and again after each that had to be ended.

    Threads may share it. A context manager: leaving it ends the process, as does the end of this one.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self,
        template: str,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        variables: Mapping[str, Any],
        *,
        now: datetime | None = None,
        file: str | os.PathLike[str] | None = None,
    ) -> list[str | None]:
        """The text of each conversation, as transformers 5 renders it; None for one but the first that cannot be.

        Args:
            template: Jinja, trusted with nothing.
            conversations: lists of messages, of plain JSON values; the first is the one that counts.
            variables: what else the template sees: `add_generation_prompt`, `bos_token`, `tools`, ...
            now: what `strftime_now` tells; None is the present, local time.
            file: where the template comes from, for errors.

        Raises:
            TemplateError: the template is malformed, or raises an error on the first conversation, or takes more than
                `CPU_S`, `WALL_S`, `MEMORY_BYTES` or `sandbox_worker.MAX_TEXT_CHARS`.
            RequestError: a variable is not a value of JSON.
        """
        request = {
            "template": template,
            "conversations": conversations,
            "variables": variables,
            "now": (now or datetime.now()).isoformat(),
        }
        try:
            asked = json.dumps(request).encode() + b"\n"
        except (RecursionError, TypeError, ValueError) as error:
            raise RequestError(f"a variable of the chat template is not JSON: {error}", file=file) from None
        with self._lock:
            answer = self._ask(asked)
        if answer is None:
            raise TemplateError(
                f"the chat template takes more than {CPU_S:g} s or {MEMORY_BYTES // 10**6} MB, and was stopped",
                file=file,
                remedy=OTHER_TEMPLATE,
            )
        if "error" in answer:
            where = f"line {answer['line']} of the chat template" if answer["line"] else "the chat template"
            raise TemplateError(f"{where}: {answer['error']}", file=file, remedy=OTHER_TEMPLATE)
        return [None if text is None else str(text) for text in answer["texts"]]

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self, request: bytes) -> dict[str, Any] | None:
        """The process's answer, or None if it ended without one; it is gone then."""
        process = self._process or self._start()
        timer = threading.Timer(WALL_S, process.kill)
        timer.start()
        answer: dict[str, Any] | None = None
        try:
            line = _exchange(process, request)
            if line.endswith(b"\n"):
                answer = json.loads(line)
            return answer
        finally:
            timer.cancel()
            if answer is None:  # also if Ctrl-C came in between: what it would say next is not for the next question
                self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(  # noqa: S603 - Python, and a file of this package
            [sys.executable, "-I", "-S", "-B", str(WORKER), str(MEMORY_BYTES), str(CPU_S), *_jinja_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            start_new_session=True,  # Ctrl-C at the terminal is not for it
        )
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            self.close()
            raise TemplateError(
                "the process that renders chat templates does not start",
                found=f"exit code {process.returncode}",
                remedy=f"check that {sys.executable} runs here",
            )
        return process


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    try:
        process.stdin.write(request)
        process.stdin.flush()
        return process.stdout.readline(MAX_ANSWER_BYTES)
    except OSError:  # it ended while the question was put
        return b""


def _jinja_folders() -> list[str]:
    """Where Jinja and what it needs are installed: all that the process can import beside the standard library."""
    folders = dict.fromkeys(
        str(Path(spec.origin).parent.parent)
        for name in ("jinja2", "markupsafe")
        if (spec := find_spec(name)) is not None and spec.origin is not None
    )
    if not folders:
        raise TemplateError("chat templates need jinja2, which is not installed", remedy="pip install jinja2")
    return list(folders)
