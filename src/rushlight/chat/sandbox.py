"""Renders chat templates in a sandboxed subprocess with limits on time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
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
"""The address space of the process, including Python and Jinja (25 MB). Enforced on Linux, not on macOS and Windows."""
CPU_S = 0.5
"""Processor time of one rendering, if the system has such a timer: independent of the machine's load."""
WALL_S = 5.0
"""Wall-clock time of one rendering, on every system; the only limit on Windows."""
MAX_REPLY_BYTES = 16 << 20
"""Two texts of `sandbox_worker.MAX_TEXT_CHARS` with the longest JSON escape for every character."""

WORKER = Path(__file__).with_name("sandbox_worker.py")
OTHER_TEMPLATE = "use another one: --chat-template FILE, or template= in Python"
KEPT_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables that Python may need to start. All others, which may hold secrets, are not passed on."""


class TemplateSandbox:
    """A subprocess that renders templates. It is started on first use, and again after it was killed.

    Thread-safe. As a context manager it ends the subprocess on exit.
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
        """Renders each conversation as transformers 5 does; the result is None for one that fails after the first.

        Args:
            template: Jinja source, untrusted.
            conversations: lists of messages, as JSON values; an error in the first is raised.
            variables: further variables of the template: `add_generation_prompt`, `bos_token`, `tools`, ...
            now: the time for `strftime_now`; None for the current local time.
            file: the file of the template, for error messages.

        Raises:
            TemplateError: the template is malformed, raises an error on the first conversation, or exceeds `CPU_S`,
                `WALL_S`, `MEMORY_BYTES` or `sandbox_worker.MAX_TEXT_CHARS`.
            RequestError: a variable is not a JSON value.
        """
        request = {
            "template": template,
            "conversations": conversations,
            "variables": variables,
            "now": (now or datetime.now()).isoformat(),
        }
        try:
            line = json.dumps(request).encode() + b"\n"
        except (RecursionError, TypeError, ValueError) as error:
            raise RequestError(f"a variable of the chat template is not a JSON value: {error}", file=file) from None
        with self._lock:
            reply = self._exchange(line)
        if reply is None:
            raise TemplateError(
                f"the chat template was stopped: it exceeded {CPU_S:g} s or {MEMORY_BYTES // 10**6} MB",
                file=file,
                remedy=OTHER_TEMPLATE,
            )
        if "error" in reply:
            where = f"line {reply['line']} of the chat template" if reply["line"] else "the chat template"
            raise TemplateError(f"{where}: {reply['error']}", file=file, remedy=OTHER_TEMPLATE)
        return [None if text is None else str(text) for text in reply["texts"]]

    def close(self) -> None:
        """Ends the subprocess, if it is running."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not sent yet
                    if pipe is not None:
                        pipe.close()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _exchange(self, request: bytes) -> dict[str, Any] | None:
        """Sends a request and returns the reply; None if the subprocess ended without one."""
        process = self._process or self._start()
        timer = threading.Timer(WALL_S, process.kill)
        timer.start()
        reply: dict[str, Any] | None = None
        try:
            line = _send(process, request)
            if line.endswith(b"\n"):
                reply = json.loads(line)
            return reply
        finally:
            timer.cancel()
            if reply is None:  # also after Ctrl-C: a late reply must not answer the next request
                self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(  # noqa: S603 - Python, and a file of this package
            [sys.executable, "-I", "-S", "-B", str(WORKER), str(MEMORY_BYTES), str(CPU_S), *_jinja_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            start_new_session=True,  # so that Ctrl-C at the terminal does not reach it
        )
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            self.close()
            raise TemplateError(
                "the subprocess for chat templates does not start",
                found=f"exit code {process.returncode}",
                remedy=f"check that {sys.executable} can be run",
            )
        return process


def _send(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    try:
        process.stdin.write(request)
        process.stdin.flush()
        return process.stdout.readline(MAX_REPLY_BYTES)
    except OSError:  # it ended while receiving the request
        return b""


def _jinja_folders() -> list[str]:
    """The folders of Jinja and its dependency, the only imports of the subprocess besides the standard library."""
    folders = dict.fromkeys(
        str(Path(spec.origin).parent.parent)
        for name in ("jinja2", "markupsafe")
        if (spec := find_spec(name)) is not None and spec.origin is not None
    )
    if not folders:
        raise TemplateError("chat templates need jinja2, which is not installed", remedy="pip install jinja2")
    return list(folders)
