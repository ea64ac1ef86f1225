"""The protocol of a proposer of draft tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rushlight.generation.sequence import SequenceState


class Proposer(Protocol):
    """Proposes draft tokens for the decoding sequences of one engine."""

    @property
    def round_s(self) -> Callable[[int], float] | None:
        """Estimates the seconds of a round: one draft token for each of n sequences. None: proposing is free."""
        ...

    def observe(self, sequence: SequenceState) -> float:
        """Compares the last draft tokens with the tokens sampled since.

        Returns:
            The expected acceptance rate of the next draft token; 0 if there is nothing to propose.
        """
        ...

    def propose(self, limits: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """Draft tokens for sequences that were just observed, at most `limits[sequence]` for each.

        Sequences may be missing from the result, or have fewer.
        """
        ...

    def forget(self, sequence: SequenceState) -> None:
        """Releases the state and blocks of a sequence that has ended."""
        ...

    def reset(self) -> None:
        """Releases everything, even if an interrupt left it inconsistent; sequences then continue as new ones."""
        ...
