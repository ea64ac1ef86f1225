"""Samples the next token of every sequence in a step, and verifies draft tokens."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.errors import RushlightError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Array, Backend
    from rushlight.generation.sequence import SequenceState


class SampleTask(NamedTuple):
    """The rows of logits from which a sequence's next tokens are sampled.

    Attributes:
        sequence: the sequence.
        rows: indices of rows in the step's logits: after its last token, and after each of its draft tokens.
        draft_tokens: its draft tokens; one fewer than rows.
    """

    sequence: SequenceState
    rows: range
    draft_tokens: Sequence[int]

    def accept_tokens(self, tokens: Iterable[int], logits: Mapping[int, NDArray[np.floating]]) -> SampleTask | None:
        """Adds the tokens sampled from the first rows to the sequence, up to the first rejected draft token.

        Returns:
            The task for the remaining rows; None if there are none, or they follow a rejected draft token.
        """
        n = 0
        for n, (token, row) in enumerate(zip(tokens, self.rows, strict=False), 1):
            self.sequence.append_token(token, logits.get(row))
            # Keys and values of rejected draft tokens are overwritten in the next step.
            if self.sequence.done or n == len(self.rows) or token != self.draft_tokens[n - 1]:
                return None
            self.sequence.n_computed += 1
        return SampleTask(self.sequence, self.rows[n:], self.draft_tokens[n:])


def sample(backend: Backend, logits: Array, tasks: Sequence[SampleTask]) -> None:
    """Samples the next token of every sequence, and one more for each accepted draft token.

    A step usually takes one call of `Backend.sample`. Sequences with stateful samplers (penalties, a constraint) need
    another call for each accepted draft token, because the next row depends on it. A sequence for which no token can be
    sampled ends with an error.

    Args:
        backend: the device.
        logits: (R, V) on the device.
        tasks: one for each sequence.
    """
    while tasks:
        sampling_rows = [task.sequence.sampling_rows(len(task.rows)) for task in tasks]
        rows = [row for task, how in zip(tasks, sampling_rows, strict=True) for row in task.rows[: len(how)]]
        tokens = iter(backend.sample(rows_of(backend, logits, rows), [*chain.from_iterable(sampling_rows)]))
        needed = [row for task in tasks if task.sequence.wants_logprobs for row in task.rows]
        on_host = dict(zip(needed, host_rows(backend, logits, needed), strict=True)) if needed else {}
        remaining = []
        for task, how in zip(tasks, sampling_rows, strict=True):
            sampled = list(islice(tokens, len(how)))
            try:
                rest = task.accept_tokens(sampled, on_host)
            except RushlightError as error:
                task.sequence.fail(error)
            else:
                if rest is not None:
                    remaining.append(rest)
        tasks = remaining


def host_rows(backend: Backend, logits: Array, rows: Sequence[int]) -> NDArray[np.floating]:
    """Some rows of the logits, on the host."""
    return backend.to_numpy(rows_of(backend, logits, rows))


def rows_of(backend: Backend, logits: Array, rows: Sequence[int]) -> Array:
    """Some rows of the logits, on the device; not copied if they are all rows."""
    return logits if len(rows) == logits.shape[0] else backend.take(logits, np.array(rows, np.int32))
