"""A conversation line by line: a message or a JSON object on standard input, and its answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rushlight.cli.chat_answer import out_whole, summary, without_leading_space
from rushlight.cli.terminal import out, say
from rushlight.errors import RequestError, RushlightError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rushlight.chat import Chat
    from rushlight.result import Generation


def answer_lines(conversation: Chat, *, as_json: bool, stats: bool) -> bool:
    """Answers each line of standard input in one turn; whether all went well. A turn that fails harms no other."""
    sound = True
    for text in _lines():
        try:
            answer = conversation.stream(_content(text) if as_json else _decoded(text))
            if as_json:
                for _ in answer:
                    pass
                out(json.dumps(_record(answer.result), ensure_ascii=False) + "\n")
            else:
                out_whole(without_leading_space(answer))
            if stats:
                say(summary(answer.result))
        except RushlightError as error:
            sound = False
            if as_json:
                record = {"error": {"code": error.code, "message": str(error)}}
                out(json.dumps(record, ensure_ascii=False) + "\n")
            say(f"error: {error}")
    return sound


def _lines() -> Iterator[bytes]:
    """The lines of standard input that are not empty, each of a length that can be a message."""
    from rushlight.text.tokenizer import MAX_PROMPT_BYTES

    if sys.stdin is None:
        raise RequestError("standard input is closed", remedy="pipe the messages in, one a line")
    while line := sys.stdin.buffer.readline(MAX_PROMPT_BYTES):
        if len(line) == MAX_PROMPT_BYTES and not line.endswith(b"\n"):
            raise RequestError(
                "a message is too long", file="standard input", expected=f"fewer than {MAX_PROMPT_BYTES:,} bytes"
            )
        if line.strip():
            yield line


def _decoded(line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError("a message is not UTF-8", file="standard input", offset=error.start) from None


def _content(line: bytes) -> str:
    """The message of a line of JSON."""
    from rushlight.strict_json import parse_json_object

    values = parse_json_object(line, file="standard input", error=RequestError)
    content = values.get("content")
    if not isinstance(content, str) or values.get("role", "user") != "user" or values.keys() - {"role", "content"}:
        raise RequestError("not a message", file="standard input", expected='{"role": "user", "content": "..."}')
    return content


def _record(result: Generation) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": result.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "stats": asdict(result.stats),
    }
