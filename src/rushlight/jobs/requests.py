"""Parses a line of the input: a JSON object, or a prompt as plain text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from rushlight.errors import RequestError, printable_name
from rushlight.files.strict_json import parse_json_object
from rushlight.generation.sampling.params import SETTINGS
from rushlight.generation.sampling.philox import request_seed
from rushlight.jobs.lines import MAX_LINE_BYTES
from rushlight.runtime.request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rushlight.generation import SamplingSettings
    from rushlight.jobs.lines import Line

FIELDS = ("prompt", "id", "stop", *SETTINGS)
MAX_ID_DEPTH = 64
"""Nesting of an id, which must be readable again when the job is resumed."""
INTEGERS = ("prompt", *(name for name, each in SETTINGS.items() if each.range.type is int))
"""The fields whose numbers are integers; some programs write 2.0 for 2."""


@dataclass(frozen=True, slots=True)
class RequestLines:
    """Parses the lines of a job.

    Attributes:
        settings: sampling settings of lines that do not set their own.
        stop: the same for stop strings.
        seed: of the job; with the index of a line, it determines the seed of a line without one.
        plain_text: whether a line is a prompt rather than a JSON object.
    """

    settings: SamplingSettings
    stop: Sequence[str] = ()
    seed: int = 0
    plain_text: bool = False

    def parse(self, line: Line) -> tuple[Request, Any]:
        """The request of a line, and its id: any JSON value, or None.

        A field that is null counts as not given. The model validates the values of settings.

        Raises:
            RequestError: the line is too long, not a JSON object, has unknown fields, or lacks a prompt.
        """
        if not line.is_complete:
            raise RequestError("the line is too long", expected=f"at most {MAX_LINE_BYTES:,} bytes", found=line.n_bytes)
        if self.plain_text:
            return Request(_text(line.raw), self.stop, self._settings(line, {})), None
        members = parse_json_object(line.raw, file="request", error=RequestError)
        unknown = [f'"{printable_name(name)}"' for name in members if name not in FIELDS]
        if unknown:
            raise RequestError(f"unknown field {', '.join(unknown)}", expected=", ".join(FIELDS))
        members = {name: _to_integer(value) if name in INTEGERS else value for name, value in members.items()}
        members = {name: value for name, value in members.items() if value is not None}
        if not isinstance(members.get("prompt"), str | list):
            raise RequestError(
                '"prompt" is missing' if "prompt" not in members else '"prompt" must be a string or a list of token ids'
            )
        stop = members.get("stop", self.stop)
        if not isinstance(stop, str) and not all(isinstance(each, str) for each in _list(stop)):
            raise RequestError('"stop" must be a string or a list of strings')
        settings = {name: value for name, value in members.items() if name in SETTINGS}
        name = members.get("id")
        if _is_deeper(name, MAX_ID_DEPTH):
            raise RequestError('"id" is nested too deeply', expected=f"at most {MAX_ID_DEPTH} levels")
        return Request(members["prompt"], stop, self._settings(line, settings)), name

    def settings_digest(self, *rest: object) -> str:
        """The digest, 16 hex digits, of these settings and the other settings of a job."""
        rules = [dict(self.settings), list(self.stop), self.seed, self.plain_text, *rest]
        return blake2b(json.dumps(rules).encode(), digest_size=8).hexdigest()

    def _settings(self, line: Line, given: dict[str, Any]) -> SamplingSettings:
        settings: dict[str, Any] = {**self.settings, **given}
        if settings.get("seed") is None:
            settings["seed"] = request_seed(self.seed, line.index)
        if isinstance(settings.get("logit_bias"), dict):
            settings["logit_bias"] = {_token_id(key): value for key, value in settings["logit_bias"].items()}
        return cast("SamplingSettings", settings)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError("the prompt is not UTF-8", offset=error.start, found=f"0x{raw[error.start]:02x}") from None


def _is_deeper(value: object, max_depth: int) -> bool:
    """Whether lists and objects are nested deeper than `max_depth` levels."""
    level = [value]
    for _ in range(max_depth + 1):
        parts = [part for part in level if isinstance(part, list | dict)]
        level = [item for part in parts for item in (part.values() if isinstance(part, dict) else part)]
        if not parts:
            return False
    return True


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


def _to_integer(value: Any) -> Any:
    """Converts a float without a fraction to an integer, also in a list."""

    def convert(one: Any) -> Any:
        return int(one) if type(one) is float and one.is_integer() else one

    return [convert(one) for one in value] if isinstance(value, list) else convert(value)


def _token_id(key: int | str) -> int:
    """A token id from a JSON key."""
    try:
        return int(key)
    except ValueError:
        raise RequestError("logit_bias keys must be token ids", found=printable_name(str(key))) from None
