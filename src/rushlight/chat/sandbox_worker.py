"""The subprocess in which `rushlight.chat.sandbox` renders chat templates: JSON lines in, JSON lines out.

A template is a program that comes with a download. Jinja's sandbox protects Python's internals but limits neither time
nor memory, so templates run here: without environment variables or files, and with limits on memory and processor time.

Started by path; imports only the standard library and Jinja. Prints `ready`, then for each request line
`{"template", "conversations", "variables", "now"}` a reply line `{"texts"}` or `{"error", "line"}`.

Templates get the filters, tags and functions of transformers 5 (`utils/chat_template_utils.py`), so that they render
the same.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT_CHARS = 1 << 20
"""The longest rendered conversation, about 250,000 tokens."""
MAX_ERROR_CHARS = 500
LATE_IMPORTS = "encodings.ascii encodings.latin_1 encodings.unicode_escape jinja2.constants jinja2.debug pprint".split()
"""Modules that Jinja and Python would import on first use, when files can no longer be opened."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which messages store their reasoning; templates read the first."""


def main() -> None:
    """Serves requests until standard input ends. Arguments: memory in bytes, processor time in seconds, folders."""
    memory_bytes, cpu_s, *folders = sys.argv[1:]
    sys.path += folders
    environment = chat_environment()
    for module in LATE_IMPORTS:
        import_module(module)
    _limit(int(memory_bytes))
    compiled: dict[str, Template] = {}
    _print("ready")
    for line in sys.stdin.buffer:
        _start_timer(float(cpu_s))
        reply = _reply(line, environment, compiled)
        _start_timer(0)
        _print(json.dumps(reply))


def chat_environment() -> ImmutableSandboxedEnvironment:
    """The Jinja sandbox with the tags, filters and functions of transformers."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks training text; for rendering it is only a scope."""

        tags: set[str] = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return str(caller())

    class Dict:
        """`dict` without the attributes of its class."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class PlainNamespace(Namespace):
        """`namespace` without names that start with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                _refuse_private(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} is not allowed: leading underscores are reserved")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "dict": Dict(), "namespace": PlainNamespace}
    return environment


def render(
    environment: ImmutableSandboxedEnvironment, compiled: dict[str, Template], request: dict[str, Any]
) -> list[str | None]:
    """Renders each conversation; raises the error of the first, and returns None for others that fail."""
    from jinja2.exceptions import TemplateError

    source = request["template"]
    if source not in compiled:
        compiled.clear()
        compiled[source] = environment.from_string(source)
    template = compiled[source]
    now = datetime.fromisoformat(request["now"])
    template.globals["strftime_now"] = now.strftime
    first, *others = request["conversations"]
    text = template.render(request["variables"] | {"messages": _normalized(first)})
    if len(text) > MAX_TEXT_CHARS:
        raise TemplateError(f"the text has {len(text):,} characters, more than the limit of {MAX_TEXT_CHARS:,}")
    texts: list[str | None] = [text]
    for messages in others:
        try:
            text = template.render(request["variables"] | {"messages": _normalized(messages)})
            texts.append(text if len(text) <= MAX_TEXT_CHARS else None)
        except Exception:  # a template may raise anything; the first conversation is rendered
            texts.append(None)
    return texts


def _normalized(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without null members, and with their reasoning under the names that templates read."""
    normalized = []
    for message in messages:
        plain = {key: value for key, value in message.items() if value is not None}
        reasoning = next((plain[key] for key in REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        normalized.append(plain)
    return normalized


def _print(line: str) -> None:
    sys.stdout.buffer.write(line.encode() + b"\n")
    sys.stdout.buffer.flush()


def _reply(line: bytes, environment: ImmutableSandboxedEnvironment, compiled: dict[str, Template]) -> dict[str, Any]:
    try:
        return {"texts": render(environment, compiled, json.loads(line))}
    except MemoryError:
        return {"error": "it needs too much memory", "line": None}
    except RecursionError:
        return {"error": "it is nested too deeply or recurses without end", "line": None}
    except Exception as error:  # a template may raise anything
        from jinja2.exceptions import TemplateError

        text = str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
        return {"error": text[:MAX_ERROR_CHARS], "line": _line(error)}


def _line(error: BaseException) -> int | None:
    """The line of the template where an error occurred, if known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line if isinstance(line, int) else None


def _limit(memory_bytes: int) -> None:
    """Limits memory, files and processes, as far as the system supports it."""
    with suppress(ImportError):  # Windows has no such limits
        import resource

        limits = (
            ("RLIMIT_AS", memory_bytes),
            ("RLIMIT_FSIZE", 0),
            ("RLIMIT_CORE", 0),
            ("RLIMIT_NPROC", 0),
            ("RLIMIT_NOFILE", 3),
        )
        for name, limit in limits:
            with suppress(AttributeError, OSError, ValueError):  # macOS has the first but refuses to set it
                resource.setrlimit(getattr(resource, name), (limit, limit))


def _start_timer(seconds: float) -> None:
    """Kills this process after that much processor time, also inside C code; 0 stops the timer."""
    with suppress(AttributeError):  # Windows has no such timer; the parent process has a clock
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
