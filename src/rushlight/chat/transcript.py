"""Saves and loads conversations as versioned JSON files, and validates them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import read_json_object
from rushlight.errors import RequestError, printable_name
from rushlight.files.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROLES", "Message", "check_messages", "read_transcript", "write_transcript"]

Message = dict[str, str]
"""`{"role": ..., "content": ...}`, and the `"reasoning"` of an answer if it is marked"""

ROLES = ("system", "user", "assistant")
FORMAT, VERSION = "rushlight conversation", 1
MAX_BYTES = 4 << 20


def check_messages(messages: object, *, file: str | os.PathLike[str] | None = None) -> list[Message]:
    """Validates messages, and returns a copy.

    Raises:
        RequestError: not a list of objects with role and content, and perhaps the reasoning of an answer; a role that
            is not in `ROLES`, a system prompt that is not first, or text that is not Unicode. The message lists every
            problem.
    """
    if not isinstance(messages, list):
        raise RequestError("messages must be a list", file=file, found=type(messages).__name__)
    problems = [
        f"message {number}: {problem}"
        for number, message in enumerate(messages, 1)
        if (problem := _problem(message, is_first=number == 1))
    ]
    if problems:
        raise RequestError("\n  ".join(["not a conversation", *problems]), file=file)
    return [dict(message) for message in messages]


def read_transcript(path: str | os.PathLike[str]) -> list[Message]:
    """Reads the messages from a file that `write_transcript` wrote.

    Raises:
        RequestError: the file is not a saved conversation, is damaged, or has another version.
        SourceError: there is no such file.
    """
    values = read_json_object(path, max_bytes=MAX_BYTES, error=RequestError)
    if values.get("format") != FORMAT:
        raise RequestError("not a saved conversation", file=path, remedy="use a file written by /save or Chat.save")
    if values.get("version") != VERSION:
        raise RequestError(
            "saved by another version of rushlight", file=path, expected=VERSION, found=values.get("version")
        )
    return check_messages(values.get("messages"), file=path)


def write_transcript(path: str | os.PathLike[str], messages: Sequence[Message], *, model: str) -> None:
    """Writes messages atomically; overwrites only a file that is itself a saved conversation.

    Raises:
        RequestError: another file exists there, or the path is invalid.
        OSError: the file cannot be written.
    """
    if os.path.lexists(path):
        try:
            read_transcript(path)
        except RequestError as error:
            raise RequestError(
                "refusing to overwrite: not a saved conversation", file=path, remedy="choose another name"
            ) from error
    record = {"format": FORMAT, "version": VERSION, "model": printable_name(model), "messages": messages}
    data = (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
    try:
        atomic_write(path, data, private=True)
    except ValueError as error:  # a NUL or half of a surrogate pair
        raise RequestError(f"not a path: {error}", file=path) from None


def _problem(message: Any, *, is_first: bool) -> str | None:
    if not isinstance(message, dict) or message.keys() - {"reasoning"} != {"role", "content"}:
        return "expected exactly role and content"
    role = message["role"]
    if role not in ROLES:
        return f"the role is {printable_name(repr(role)[:40])}, expected one of {', '.join(ROLES)}"
    if role == "system" and not is_first:
        return "a system prompt must be the first message"
    if "reasoning" in message and role != "assistant":
        return "only an answer has reasoning"
    problems = (_problem_of_text(key, message.get(key, "")) for key in ("content", "reasoning"))
    return next(filter(None, problems), None)


def _problem_of_text(key: str, text: Any) -> str | None:
    if not isinstance(text, str):
        return f"the {key} must be a string"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"the {key} contains half of a surrogate pair"
    return None
