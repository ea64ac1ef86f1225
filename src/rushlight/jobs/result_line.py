"""A line of the results file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rushlight.errors import JobError, RequestError
from rushlight.files.strict_json import parse_json_object
from rushlight.jobs.lines import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

REMEDY = "choose another file with -o, or start over with --force"
"""The next step for a results file that a job cannot resume."""

MAX_RESULT_BYTES = 8 * MAX_LINE_BYTES
"""Room for the longest prompt with every character escaped."""


@dataclass(frozen=True, slots=True)
class ResultLine:
    """The result of a request.

    Attributes:
        index: the index of its line in the input.
        request: the digest of its request, 16 hex digits.
        job: the identity of its job; empty if an earlier version wrote it.
        is_error: whether it is an error.
        raw: the line with its line end.
    """

    index: int
    request: str
    job: Mapping[str, str]
    is_error: bool
    raw: bytes

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The line of a record, whose first key is "index".

        Raises:
            RequestError: the line is longer than MAX_RESULT_BYTES.
        """
        raw = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        if len(raw) > MAX_RESULT_BYTES:
            raise RequestError(
                "the result is too long",
                expected=f"at most {MAX_RESULT_BYTES:,} bytes",
                found=f"{len(raw):,}",
                remedy="request fewer samples, tokens or log-probabilities",
            )
        return cls(record["index"], record["request"], record.get("job", {}), "error" in record, raw)

    @classmethod
    def parse(cls, raw: bytes) -> Self | None:
        """Parses a line; None if it is not a result."""
        try:
            record = parse_json_object(raw, file="result", error=JobError)
        except JobError:
            return None
        index, request, job = record.get("index"), record.get("request"), record.get("job", {})
        if (
            type(index) is not int
            or index < 0
            or not isinstance(request, str)
            or not re.fullmatch("[0-9a-f]{16}", request)
            or not int(request, 16)
            or not isinstance(job, dict)
            or not all(isinstance(value, str) for value in job.values())
        ):
            return None
        return cls(index, request, job, "error" in record, raw)
