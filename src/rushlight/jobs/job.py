"""Runs a batch job: generates the missing results of a file of requests in batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from rushlight.errors import JobError, PortError, RushlightError
from rushlight.jobs.identity import changes, job_identity
from rushlight.jobs.result_line import REMEDY, ResultLine
from rushlight.runtime.result import generations_to_json

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rushlight.jobs.lines import Line
    from rushlight.jobs.requests import RequestLines
    from rushlight.runtime.model import Model
    from rushlight.runtime.request import Request
    from rushlight.runtime.result import Generation

MAX_MESSAGE_CHARS = 2000


class Results(Protocol):
    """The destination of results: a `ResultsFile`, or stdout."""

    last_index: int
    in_order: bool
    job: Mapping[str, str] | None

    def __len__(self) -> int: ...
    def digest(self, index: int) -> str | None: ...
    def append(self, result: ResultLine) -> None: ...


@dataclass(slots=True)
class Summary:
    """The progress of a run of a job.

    Attributes:
        n_done: lines with an output from this run.
        n_failed: lines with an error from this run.
        n_skipped: lines with a result from an earlier run.
        n_bytes: bytes of the input lines that have a result, without blank lines.
        prompt_tokens, generated_tokens: tokens of this run.
        elapsed_s: duration in seconds.
    """

    n_done: int = 0
    n_failed: int = 0
    n_skipped: int = 0
    n_bytes: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def tok_s(self) -> float:
        """Generated tokens per second, over all sequences."""
        return self.generated_tokens / self.elapsed_s if self.elapsed_s else 0.0


class Job:
    """A batch job over the lines of an input.

    Args:
        model: the model.
        requests: parses the lines.
        results: the destination, with the existing results.
        max_active: maximum batch size.
        ordered: whether to write results in the order of the input.
        echo: whether results include their prompts.
        port: the user's model file, if the model was loaded with one.
    """

    def __init__(
        self,
        model: Model,
        requests: RequestLines,
        results: Results,
        *,
        max_active: int = 16,
        ordered: bool = False,
        echo: bool = False,
        port: str | os.PathLike[str] | None = None,
    ) -> None:
        self.summary = Summary()
        self.identity = job_identity(model, requests, echo=echo, port=port)
        """The properties that all results share, by name: the field "job" of every result."""
        self._model = model
        self._requests = requests
        self._results = results
        self._max_active = max_active
        self._ordered = ordered
        self._echo = echo
        self._key = blake2b(json.dumps(self.identity, sort_keys=True).encode()).digest()
        self._pending: dict[int, ResultLine | None] = {}
        """With `ordered`: the lines that are read but not written, in order, with their results if finished."""

    def check(self, lines: Iterable[Line]) -> None:
        """Compares the existing results with the entire input before any work.

        Raises:
            JobError: the results belong to another job; a result belongs to another request, or to a line that is not
                in the input; or the job is `ordered`, and the results are not in order or have a gap.
        """
        self._check_identity()
        n_finished = sum(self._is_finished(line) for line in lines)
        if n_finished < len(self._results):
            raise JobError(
                f"found {len(self._results):,} results, but the input has only {n_finished:,} of their lines",
                remedy=REMEDY,
            )

    def run(self, lines: Iterable[Line], progress: Callable[[Summary], object] | None = None) -> Summary:
        """Generates the missing results. A line that fails gets its error as the result, and the others continue.

        Args:
            lines: the input, read only as fast as the batch has room.
            progress: called after each result.

        Raises:
            JobError: as `check`, if it was not called.
            PortError: the model file is unfinished or wrong.
        """
        self._check_identity()
        start, summary = perf_counter(), self.summary
        numbers = count()
        active: dict[int, tuple[Line, Request, Any]] = {}

        def finish(line: Line, result: ResultLine) -> None:
            summary.n_bytes += line.n_bytes
            summary.elapsed_s = perf_counter() - start
            self._write(result)
            if progress is not None:
                progress(summary)

        def requests() -> Iterator[Request]:
            for line in lines:
                if self._is_finished(line):
                    summary.n_skipped += 1
                    summary.n_bytes += line.n_bytes
                    continue
                if self._ordered:
                    self._pending[line.index] = None
                try:
                    request, name = self._requests.parse(line)
                except RushlightError as error:
                    finish(line, self._failure(line, None, error))
                    continue
                active[next(numbers)] = line, request, name
                yield request

        for number, result in self._model.generate_many(requests(), max_active=self._max_active):
            line, request, name = active.pop(number)
            if isinstance(result, PortError):  # of the model file, and so of every line
                raise result
            if isinstance(result, RushlightError):
                finish(line, self._failure(line, name, result))
            else:
                finish(line, self._result(line, name, request, result if isinstance(result, list) else [result]))
        return summary

    def _check_identity(self) -> None:
        before = self._results.job
        if before is not None and before != self.identity:
            changed = ", ".join(changes(before, self.identity))
            raise JobError(
                "the results belong to another job" + (f"; changed since then: {changed}" if before else ""),
                remedy=REMEDY,
            )

    def _is_finished(self, line: Line) -> bool:
        digest = self._results.digest(line.index)
        if self._ordered and (not self._results.in_order or (digest is None and line.index < self._results.last_index)):
            raise JobError(
                "the existing results are not in order, or have a gap",
                remedy="run without --ordered, or start over with --force",
            )
        if digest is not None and digest != self._digest(line):
            raise JobError(
                f"line {line.index + 1} of the input has changed since its result was written",
                remedy=REMEDY,
            )
        return digest is not None

    def _digest(self, line: Line) -> str:
        """The digest of a request, 16 hex digits: of its line and of the identity of the job."""
        return blake2b(line.raw, digest_size=8, key=self._key).hexdigest()

    def _result(self, line: Line, name: Any, request: Request, generations: Sequence[Generation]) -> ResultLine:
        n_prompt = len(generations[0].prompt_ids)
        n_new = sum(len(generation.ids) for generation in generations)
        try:
            result = ResultLine.of(
                {
                    **_head(line, name),
                    **({"prompt": request.prompt} if self._echo else {}),
                    **generations_to_json(generations, self._model.tokenizer),
                    "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new},
                    **self._tail(line),
                }
            )
        except RushlightError as error:
            return self._failure(line, name, error)
        self.summary.n_done += 1
        self.summary.prompt_tokens += n_prompt
        self.summary.generated_tokens += n_new
        return result

    def _failure(self, line: Line, name: Any, error: RushlightError) -> ResultLine:
        self.summary.n_failed += 1
        message = str(error)
        if len(message) > MAX_MESSAGE_CHARS:  # it may quote the line
            message = f"{message[:MAX_MESSAGE_CHARS]}... ({len(message):,} characters)"
        return ResultLine.of(
            {**_head(line, name), "error": {"type": error.code, "message": message}, **self._tail(line)}
        )

    def _tail(self, line: Line) -> dict[str, Any]:
        return {"request": self._digest(line), "job": self.identity}

    def _write(self, result: ResultLine) -> None:
        if not self._ordered:
            self._results.append(result)
            return
        self._pending[result.index] = result
        while (first := next(iter(self._pending), None)) is not None and (ready := self._pending[first]) is not None:
            self._results.append(ready)
            del self._pending[first]


def _head(line: Line, name: Any) -> dict[str, Any]:
    return {"index": line.index} if name is None else {"index": line.index, "id": name}
