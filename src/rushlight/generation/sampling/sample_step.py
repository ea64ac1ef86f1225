"""The choice of a step's tokens: each sequence says how, the device chooses for all of them, the sequences take."""

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
    """What is to be chosen for one sequence.

    Attributes:
        sequence: whose tokens.
        rows: of the step's logits: those after its last token, and after each guess that follows it.
        guesses: one fewer than rows.
    """

    sequence: SequenceState
    rows: range
    guesses: Sequence[int]

    def take(self, tokens: Iterable[int], logits: Mapping[int, NDArray[np.floating]]) -> SampleTask | None:
        """Has the sequence take the tokens of the first rows; what is left to choose once it has taken them."""
        n = 0
        for n, (token, row) in enumerate(zip(tokens, self.rows, strict=False), 1):
            self.sequence.take(token, logits.get(row))
            # What was computed for a wrong guess, and after it, is written over in the next step.
            if self.sequence.done or n == len(self.rows) or token != self.guesses[n - 1]:
                return None
            self.sequence.n_computed += 1
        return SampleTask(self.sequence, self.rows[n:], self.guesses[n:])


def sample(backend: Backend, logits: Array, choices: list[SampleTask]) -> None:
    """Takes the next token for every sequence, and as many more as guesses are right.

    One call of the device does for a step. Only where a guess is right, and how the token after it is chosen depends
    on that, is there another: penalties and constraints follow the text. A sequence for which no token can be chosen
    ends with its error.

    Args:
        logits: (R, V) on the device.
    """
    while choices:
        draws = [choice.sequence.sampling_rows(len(choice.rows)) for choice in choices]
        rows = [row for choice, own in zip(choices, draws, strict=True) for row in choice.rows[: len(own)]]
        tokens = iter(backend.sample(rows_of(backend, logits, rows), [*chain.from_iterable(draws)]))
        looked_at = [row for choice in choices if choice.sequence.wants_logprobs for row in choice.rows]
        on_host = dict(zip(looked_at, host_rows(backend, logits, looked_at), strict=True)) if looked_at else {}
        left = []
        for choice, own in zip(choices, draws, strict=True):
            chosen = list(islice(tokens, len(own)))
            try:
                rest = choice.take(chosen, on_host)
            except RushlightError as error:
                choice.sequence.fail(error)
            else:
                if rest is not None:
                    left.append(rest)
        choices = left


def host_rows(backend: Backend, logits: Array, rows: Sequence[int]) -> NDArray[np.floating]:
    """Some rows of the logits on the host."""
    return backend.to_numpy(rows_of(backend, logits, rows))


def rows_of(backend: Backend, logits: Array, rows: Sequence[int]) -> Array:
    """Some rows of the logits, which are most often all."""
    return logits if len(rows) == logits.shape[0] else backend.take(logits, np.array(rows, np.int32))
