"""What a sequence asks of the choice of each token: its settings, its random numbers, and what its text forbids."""

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
    """What may come next in one text; `rushlight.text.constraint.Constraint` is one."""

    def allowed(self) -> NDArray[np.bool_]:
        """(V,): whether each token may be the next."""
        ...

    def take(self, token: int, /) -> None:
        """Takes the token that was chosen."""
        ...


class Sampler:
    """Says how each token of one sequence is to be chosen; the device chooses (`Backend.sample`).

    The draw at a position depends on the logits, the seed and the position alone: a sequence comes out the same
    whatever is generated beside it.

    Args:
        params: how to choose.
        vocab_size: V.
        prompt_ids: what stands before the text; only the repetition penalty looks at it.
        allowed: (V,) the tokens that may be chosen; None is all. Sequences of one model share the array.
        constraint: what the text must match.
        allowed_first: (V,) the same for the first token after the prompt, where that differs.

    Attributes:
        is_stateful: whether a draw depends on the tokens before it, so that there is none before they are chosen.

    Raises:
        RequestError: `params` names tokens that the vocabulary does not have.
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
        self.is_stateful = constraint is not None or self._penalties.grow
        self._row = SamplingRow(
            params.temperature,
            min(params.top_k, vocab_size),
            params.top_p,
            params.min_p,
            adjustments=self._penalties.changes(),
        )

    def row(self, position: int) -> SamplingRow:
        """How the token to stand at `position` is chosen, after those that were taken."""
        allowed = self._allowed_first if position == self._first else self._allowed
        draw = self._row._replace(allowed=allowed)
        if self.is_stateful:
            if self._constraint is not None:
                allowed = self._constraint.allowed() if allowed is None else self._constraint.allowed() & allowed
            draw = draw._replace(adjustments=self._penalties.changes(), allowed=allowed)
        return draw._replace(uniform=uniform(self.seed, position)) if draw.temperature else draw

    def allows_none(self, position: int) -> bool:
        """Whether no token at all may stand at `position`, after those that were taken."""
        allowed = self.row(position).allowed
        return allowed is not None and not allowed.any()

    def take(self, token: int) -> None:
        """Takes the token that was chosen: it now belongs to the text.

        Raises:
            GenerationError: the constraint gives up.
        """
        if self.is_stateful:
            self._penalties.take(token)
            if self._constraint is not None:
                self._constraint.take(token)


class Penalties:
    """What penalties and biases do to logits, as the text grows.

    Args:
        params: theirs.
        prompt_ids: what the repetition penalty sees before the text.

    Attributes:
        grow: whether they depend on the text.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self._params = params
        self._bias = params.logit_bias or {}
        repeats = params.repetition_penalty != 1
        self.grow = repeats or params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts = dict.fromkeys(prompt_ids, 0) if repeats else {}
        """The tokens whose logits change for their presence, each with how often it stands in the text."""
        self._places: dict[int, int] = {}
        self._ids, self._factors, self._offsets = np.empty(0, np.int32), np.empty(0), np.empty(0)
        for token in {**self._bias, **self._counts}:
            self._set(token)

    def take(self, token: int) -> None:
        """Takes a token of the text."""
        if self.grow:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._set(token)

    def changes(self) -> LogitAdjustments | None:
        """As they are now, until the next token is taken."""
        n = len(self._places)
        return LogitAdjustments(self._ids[:n], self._factors[:n], self._offsets[:n]) if n else None

    def _set(self, token: int) -> None:
        params, count = self._params, self._counts.get(token)
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            more = 64 + len(self._ids)
            self._ids, self._factors, self._offsets = (
                np.concatenate([array, np.zeros(more, array.dtype)])
                for array in (self._ids, self._factors, self._offsets)
            )
        penalty = params.presence_penalty * (1 if count else 0) + params.frequency_penalty * (count or 0)
        self._ids[place] = token
        self._factors[place] = 1.0 if count is None else params.repetition_penalty
        self._offsets[place] = self._bias.get(token, 0.0) - penalty
