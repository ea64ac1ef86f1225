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
    from rushlight.chat import Chat
    from rushlight.jobs import Line
    from rushlight.result import Generation


def answer_lines(conversation: Chat, *, as_json: bool, stats: bool) -> bool:
    """Answers each line of standard input in one turn; whether all went well. A turn that fails harms no other."""
    from rushlight.jobs import read_lines

    sound = True
    if sys.stdin is None:
        raise RequestError("standard input is closed", remedy="pipe the messages in, one a line")
    for line in read_lines(sys.stdin.buffer):
        try:
            answer = conversation.stream(_message(line, as_json=as_json))
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


def _message(line: Line, *, as_json: bool) -> str:
    """What a line says: all of it, or the content of its JSON object."""
    from rushlight.strict_json import parse_json_object

    file = f"standard input, line {line.index + 1}"
    if not line.is_whole:
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


def _record(result: Generation) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": result.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "stats": asdict(result.stats),
    }
