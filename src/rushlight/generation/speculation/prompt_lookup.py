"""Prompt lookup: proposes the tokens that followed the longest earlier occurrence of the sequence's suffix."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

from rushlight.generation.speculation.step_costs import count_accepted, update_acceptance_rate
from rushlight.generation.speculation.suffix_index import SuffixIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rushlight.generation.sequence import SequenceState

MATCH_LENGTHS = (1, 2, 4, 8)
"""Acceptance rates are tracked by length of the match: longer matches are accepted more often."""


class SequenceLookup:
    """Prompt lookup in the tokens of one sequence (Saxena, "Prompt lookup decoding", 2023)."""

    def __init__(self) -> None:
        self._index = SuffixIndex()
        self._rates = [0.0] * (len(MATCH_LENGTHS) + 1)
        self._kind = 0  # of the match: the index of its rate
        self._draft_tokens: list[int] = []

    def observe(self, ids: Sequence[int]) -> float:
        """Takes prompt and output so far; returns the expected acceptance rate of the next draft token."""
        index, rates = self._index, self._rates
        new = ids[len(index.ids) :]
        if self._draft_tokens:
            n_accepted = count_accepted(self._draft_tokens, new)
            rates[self._kind] = update_acceptance_rate(rates[self._kind], n_accepted, len(self._draft_tokens))
        for token in new:
            index.append(token)
        length, end = index.match()
        self._kind = bisect(MATCH_LENGTHS, length)
        # One draft token is kept even if none is proposed, to measure the acceptance rate at no cost.
        self._draft_tokens = index.ids[end : end + 1] if length else []
        return rates[self._kind] if length else 0.0

    def propose(self, n: int) -> list[int]:
        """At most n draft tokens. A match that reaches the end of the sequence continues into the draft tokens."""
        ids = self._index.ids
        length, end = self._index.match()
        self._draft_tokens = []
        for i in range(end, end + n if length else end):
            self._draft_tokens.append(ids[i] if i < len(ids) else self._draft_tokens[i - len(ids)])
        return self._draft_tokens


class PromptLookup:
    """A proposer that searches each sequence for its own suffix, at negligible cost."""

    round_s = None

    def __init__(self) -> None:
        self._lookups: dict[SequenceState, SequenceLookup] = {}

    def observe(self, sequence: SequenceState) -> float:
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = self._lookups[sequence] = SequenceLookup()
        return lookup.observe(sequence.ids)

    def propose(self, limits: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        return {sequence: self._lookups[sequence].propose(n) for sequence, n in limits.items()}

    def forget(self, sequence: SequenceState) -> None:
        self._lookups.pop(sequence, None)

    def reset(self) -> None:
        self._lookups = {}
