"""A conversation in a pipe: reads a message or a JSON object per line from stdin, and writes its answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from rushlight.cli.chat.answer import out_answer, summary, without_leading_space
from rushlight.cli.terminal import out_json, write_err
from rushlight.errors import RequestError, RushlightError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rushlight.chat import Answer, Chat
    from rushlight.jobs import Line


def answer_lines(conversation: Chat, first: str | None, *, as_json: bool, stats: bool) -> bool:
    """Answers the first message, if given, and then each line of stdin.

    A turn that fails does not affect the others. Returns whether all turns succeeded.
    """
    succeeded = True
    for message in _messages(first, as_json=as_json):
        try:
            answer = conversation.stream(message())
            if as_json:
                for _ in answer:
                    pass
                out_json(_record(answer))
            else:
                out_answer(without_leading_space(answer))
            if stats:
                write_err(summary(answer.result))
        except RushlightError as error:
            succeeded = False
            if as_json:
                out_json({"error": {"code": error.code, "message": str(error)}})
            write_err(f"error: {error}")
    return succeeded


def _messages(first: str | None, *, as_json: bool) -> Iterator[Callable[[], str]]:
    """For each message, a function that returns it or raises the error of its line."""
    from rushlight.jobs import read_lines

    if first is not None:
        yield lambda: first
    if sys.stdin is None:
        raise RequestError("stdin is closed", remedy="pipe in one message per line")
    for line in read_lines(sys.stdin.buffer):
        yield partial(_message, line, as_json=as_json)


def _message(line: Line, *, as_json: bool) -> str:
    """The message of a line: all of it, or the content of its JSON object."""
    from rushlight.files.strict_json import parse_json_object

    file = f"standard input, line {line.index + 1}"
    if not line.is_complete:
        raise RequestError("a message is too long", file=file, found=f"{line.n_bytes:,} bytes")
    if not as_json:
        try:
            return line.raw.decode()
        except UnicodeDecodeError as error:
            raise RequestError("a message is not UTF-8", file=file, offset=error.start) from None
    values = parse_json_object(line.raw, file=file, error=RequestError)
    content = values.get("content")
    if not isinstance(content, str) or values.get("role", "user") != "user" or values.keys() - {"role", "content"}:
        raise RequestError("not a message", file=file, expected='{"role": "user", "content": "..."}')
    return content


def _record(answer: Answer) -> dict[str, Any]:
    result = answer.result
    return {
        "role": "assistant",
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        "content": answer.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "stats": asdict(result.stats),
    }
