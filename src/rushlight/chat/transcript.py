"""Conversations on disk: a JSON object of messages with its version, checked whole before any of it is taken."""

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
"""`{"role": ..., "content": ...}`"""

ROLES = ("system", "user", "assistant")
FORMAT, VERSION = "rushlight conversation", 1
MAX_BYTES = 4 << 20


def check_messages(messages: object, *, file: str | os.PathLike[str] | None = None) -> list[Message]:
    """The messages, copied, once it is sure that they are some.

    Raises:
        RequestError: with every problem: not a list of objects with role and content alone, a role that is none of
            `ROLES`, a system prompt that is not the first, text that is not Unicode.
    """
    if not isinstance(messages, list):
        raise RequestError("messages are not a list", file=file, found=type(messages).__name__)
    problems = [
        f"message {number}: {problem}"
        for number, message in enumerate(messages, 1)
        if (problem := _problem(message, is_first=number == 1))
    ]
    if problems:
        raise RequestError("\n  ".join(["not a conversation", *problems]), file=file)
    return [dict(message) for message in messages]


def read_transcript(path: str | os.PathLike[str]) -> list[Message]:
    """The messages of a file that `write_transcript` wrote.

    Raises:
        RequestError: it is no such file, of another version, or damaged.
        SourceError: there is no such file.
    """
    values = read_json_object(path, max_bytes=MAX_BYTES, error=RequestError)
    if values.get("format") != FORMAT:
        raise RequestError("not a saved conversation", file=path, remedy="/save and Chat.save write one")
    if values.get("version") != VERSION:
        raise RequestError(
            "saved by another version of rushlight", file=path, expected=VERSION, found=values.get("version")
        )
    return check_messages(values.get("messages"), file=path)


def write_transcript(path: str | os.PathLike[str], messages: Sequence[Message], *, model: str) -> None:
    """Writes messages, whole or not at all; only a file that is itself a saved conversation is written over.

    Raises:
        RequestError: something else is there, or it is not a path.
        OSError: it cannot be written.
    """
    if os.path.lexists(path):
        try:
            read_transcript(path)
        except RequestError as error:
            raise RequestError(
                "there is a file that is no saved conversation, and it stays", file=path, remedy="choose another name"
            ) from error
    record = {"format": FORMAT, "version": VERSION, "model": printable_name(model), "messages": messages}
    data = (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()
    try:
        atomic_write(path, data, private=True)
    except ValueError as error:  # a NUL or half of a surrogate pair
        raise RequestError(f"not a path: {error}", file=path) from None


def _problem(message: Any, *, is_first: bool) -> str | None:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return "it should have role and content, and nothing else"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"the role is {printable_name(repr(role)[:40])}, and should be {', '.join(ROLES)}"
    if role == "system" and not is_first:
        return "a system prompt can only be the first"
    if not isinstance(content, str):
        return "the content is not text"
    if any("\ud800" <= character <= "\udfff" for character in content):
        return "the content holds half of a surrogate pair"
    return None
