"""The sampler of a sequence: turns settings, seed, penalties and constraint into a `SamplingRow` for each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rushlight.backends.protocol import LogitAdjustments, SamplingRow
from rushlight.generation.sampling.philox import new_seed, uniform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rushlight.generation.sampling.params import SamplingParams


class Constraint(Protocol):
    """A grammar that an output must match; `rushlight.text.constraint.Constraint` is one."""

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): whether each token may come next."""
        ...

    def accept_token(self, token: int, /) -> None:
        """Advances by a sampled token."""
        ...


class Sampler:
    """Determines how each token of one sequence is sampled; `Backend.sample` samples it on the device.

    A sampled token depends only on the logits, the seed and the position, so the output is the same in every batch.

    Args:
        params: the sampling parameters.
        vocab_size: V.
        prompt_ids: the prompt, to which the repetition penalty applies too.
        allowed: (V,) the tokens that may be sampled; None is all. Sequences of one model share the array.
        constraint: the grammar that the output must match.
        allowed_first: (V,) `allowed` for the first token after the prompt; None if it does not differ.

    Attributes:
        is_stateful: whether the row of a token depends on the tokens sampled before it.

    Raises:
        RequestError: `params` has token ids outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt_ids: Iterable[int] = (),
        allowed: NDArray[np.bool_] | None = None,
        constraint: Constraint | None = None,
        *,
        allowed_first: NDArray[np.bool_] | None = None,
    ) -> None:
        prompt_ids = list(prompt_ids)
        params.check_vocabulary(vocab_size)
        self.params = params
        self.seed = new_seed() if params.seed is None else int(params.seed)
        self._constraint = constraint
        self._penalties = Penalties(params, prompt_ids)
        self._allowed = allowed
        self._allowed_first = allowed if allowed_first is None else allowed_first
        self._first = len(prompt_ids)
        self.is_stateful = constraint is not None or self._penalties.are_stateful
        self._row = SamplingRow(
            params.temperature,
            min(params.top_k, vocab_size),
            params.top_p,
            params.min_p,
            adjustments=self._penalties.adjustments(),
        )

    def row(self, position: int) -> SamplingRow:
        """How to sample the token at `position`, after the tokens sampled so far."""
        allowed = self._allowed_first if position == self._first else self._allowed
        row = self._row._replace(allowed=allowed)
        if self.is_stateful:
            if self._constraint is not None:
                allowed = self._constraint.allowed() if allowed is None else self._constraint.allowed() & allowed
            row = row._replace(adjustments=self._penalties.adjustments(), allowed=allowed)
        return row._replace(uniform=uniform(self.seed, position)) if row.temperature else row

    def allows_none(self, position: int) -> bool:
        """Whether no token is allowed at `position`, after the tokens sampled so far."""
        allowed = self.row(position).allowed
        return allowed is not None and not allowed.any()

    def accept_token(self, token: int) -> None:
        """Adds a sampled token to the output.

        Raises:
            GenerationError: the constraint cannot continue.
        """
        if self.is_stateful:
            self._penalties.accept_token(token)
            if self._constraint is not None:
                self._constraint.accept_token(token)


class Penalties:
    """The logit adjustments of penalties and biases, updated as the output grows.

    Args:
        params: the penalties and biases.
        prompt_ids: the prompt, to which the repetition penalty applies too.

    Attributes:
        are_stateful: whether they depend on the output.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self._params = params
        self._bias = params.logit_bias or {}
        repeats = params.repetition_penalty != 1
        self.are_stateful = repeats or params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts = dict.fromkeys(prompt_ids, 0) if repeats else {}
        """How often each penalised token occurs in the output."""
        tokens = {**self._bias, **self._counts}
        self._indices = {token: index for index, token in enumerate(tokens)}  # in the arrays
        self._ids = np.fromiter(tokens, np.int32, len(tokens))
        self._factors = np.full(len(tokens), params.repetition_penalty, np.float64)
        self._offsets = np.zeros(len(tokens))
        for token in self._bias:
            self._set(token)

    def accept_token(self, token: int) -> None:
        """Counts a token of the output."""
        if self.are_stateful:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._set(token)

    def adjustments(self) -> LogitAdjustments | None:
        """The current adjustments; the arrays are valid until the next `accept_token`."""
        n = len(self._indices)
        return LogitAdjustments(self._ids[:n], self._factors[:n], self._offsets[:n]) if n else None

    def _set(self, token: int) -> None:
        params, count = self._params, self._counts.get(token)
        index = self._indices.setdefault(token, len(self._indices))
        if index == len(self._ids):
            more = 64 + len(self._ids)
            self._ids, self._factors, self._offsets = (
                np.concatenate([array, np.zeros(more, array.dtype)])
                for array in (self._ids, self._factors, self._offsets)
            )
        penalty = params.presence_penalty * (1 if count else 0) + params.frequency_penalty * (count or 0)
        self._ids[index] = token
        self._factors[index] = 1.0 if count is None else params.repetition_penalty
        self._offsets[index] = self._bias.get(token, 0.0) - penalty
