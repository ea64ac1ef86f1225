"""A batch job: the requests that have no result yet, run together, each result written as it comes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from rushlight.errors import JobError, RushlightError
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
    """Where results go: a `ResultsFile`, or what only passes them on."""

    last_index: int
    in_order: bool
    job: Mapping[str, str] | None

    def __len__(self) -> int: ...
    def digest(self, index: int) -> str | None: ...
    def append(self, result: ResultLine) -> None: ...


@dataclass(slots=True)
class Summary:
    """What a run of a job has done so far.

    Attributes:
        n_done: lines that now have a text.
        n_failed: lines that now have an error.
        n_skipped: lines whose result was there before.
        n_bytes: of the input: the lines that have a result, blank lines not counted.
        prompt_tokens, generated_tokens: of the lines done now.
        elapsed_s: seconds.
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
        """New tokens a second, of all the texts together."""
        return self.generated_tokens / self.elapsed_s if self.elapsed_s else 0.0


class Job:
    """The lines of an input, and the results that they have or are to have.

    Args:
        model: generates.
        requests: how lines are read.
        results: where results go, and which are there.
        max_active: sequences at once.
        ordered: keep the order of the input: a result waits for those before it.
        echo: results hold their prompts.
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
        """What the results have in common, by name: every result holds it under "job"."""
        self._model = model
        self._requests = requests
        self._results = results
        self._max_active = max_active
        self._ordered = ordered
        self._echo = echo
        self._key = blake2b(json.dumps(self.identity, sort_keys=True).encode()).digest()
        self._pending: dict[int, ResultLine | None] = {}
        """With `ordered`: lines read and not written, in order, each with its result where it has come."""

    def check(self, lines: Iterable[Line]) -> None:
        """Compares the results that are there with the whole input, so that what does not fit is told before any work.

        Raises:
            JobError: the results are of another job; a result is of another request, or of a line that the input does
                not have; or the results are not in order, or have a gap, and the job is `ordered`.
        """
        self._check_identity()
        n_finished = sum(self._is_finished(line) for line in lines)
        if n_finished < len(self._results):
            raise JobError(
                f"there are {len(self._results):,} results, and the input has only {n_finished:,} of their lines",
                remedy=REMEDY,
            )

    def run(self, lines: Iterable[Line], progress: Callable[[Summary], object] | None = None) -> Summary:
        """Runs the lines that have no result. A line that fails has its error for a result, and the others go on.

        Args:
            lines: read as there is room for them.
            progress: called after each result.

        Raises:
            JobError: as `check`, where that was not asked.
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
        there = self._results.digest(line.index)
        if self._ordered and (not self._results.in_order or (there is None and line.index < self._results.last_index)):
            raise JobError(
                "the results that are there are not in order, or have a gap",
                remedy="run it without --ordered, or begin again with --force",
            )
        if there is not None and there != self._digest(line):
            raise JobError(
                f"line {line.index + 1} of the input is not the request that its result answers: it has changed",
                remedy=REMEDY,
            )
        return there is not None

    def _digest(self, line: Line) -> str:
        """16 hex digits that tell this request from others: of its line and of what the job has in common."""
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
        if len(message) > MAX_MESSAGE_CHARS:  # it quotes the line
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
