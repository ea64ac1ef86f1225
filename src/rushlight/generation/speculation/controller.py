"""Speculative decoding: decides how many draft tokens a step verifies as additional rows.

A draft token is accepted exactly when it is the token sampled from the model's logits at that position, with the
sequence's settings and seed. So the output never changes, greedy or sampled (Leviathan et al., arXiv:2211.17192,
preserve the distribution; here every token is preserved). The number of draft tokens follows from recent acceptance
rates and from measured step times.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

from rushlight.generation.speculation.step_costs import StepCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rushlight.generation.sequence import SequenceState
    from rushlight.generation.speculation.proposer import Proposer

MAX_DRAFT_TOKENS = 15
"""The most draft tokens per sequence and step."""

MIN_SPEEDUP = 1.05
"""The least expected speedup for which draft tokens are used, because measured times are noisy."""

MIN_ACCEPTANCE_RATE = 0.05
"""A draft token that is less likely to be accepted is never worth a row."""

LOOKAHEAD_ROWS = 4
"""Rows to try beyond the first that does not pay, because some kernels process rows in groups."""


class SpeculationController:
    """Decides which sequences of a step get draft tokens, how many, and from which proposer.

    Args:
        proposers: the sources of draft tokens; if two expect the same acceptance rate, the first is used.

    Attributes:
        proposers: as given.
        costs: the times of the engine's decode steps, by number of rows.
    """

    def __init__(self, proposers: Sequence[Proposer] = ()) -> None:
        self.proposers = list(proposers)
        self.costs = StepCosts()

    def draft(self, sequences: Sequence[SequenceState]) -> dict[SequenceState, list[int]]:
        """The draft tokens to verify in a step of these decoding sequences; most sequences have none."""
        if not self.proposers:
            return {}
        rates = [0.0] * len(sequences)
        proposers: list[Proposer | None] = [None] * len(sequences)
        for i, sequence in enumerate(sequences):
            if sequence.speculate is False:
                continue
            for proposer in self.proposers:
                rate = proposer.observe(sequence)
                if proposers[i] is None or rate > rates[i]:
                    rates[i], proposers[i] = rate, proposer
        forced = [i for i, sequence in enumerate(sequences) if sequence.speculate]
        if not any(rates) and not forced:
            return {}
        limits = [sequence.max_draft_tokens for sequence in sequences]
        counts: Counter[int] = Counter()
        if self.costs.is_measured(len(sequences)):
            rounds_s = [None if proposer is None else proposer.round_s for proposer in proposers]
            counts = plan_drafts(rates, limits, self.costs.estimate, rounds_s)
        counts |= Counter({i: min(MAX_DRAFT_TOKENS, limits[i]) for i in forced})
        wanted: dict[Proposer, dict[SequenceState, int]] = {}
        for i, n in sorted(counts.items()):
            if (selected := proposers[i]) is not None:
                wanted.setdefault(selected, {})[sequences[i]] = n
        drafts: dict[SequenceState, list[int]] = {}
        for proposer, each in wanted.items():
            drafts |= proposer.propose(each)
        return {sequence: tokens for sequence, tokens in drafts.items() if tokens}

    def forget(self, sequence: SequenceState) -> None:
        """Releases the proposers' state of a sequence that has ended."""
        for proposer in self.proposers:
            proposer.forget(sequence)

    def reset(self) -> None:
        """Releases all state of the proposers."""
        for proposer in self.proposers:
            proposer.reset()


def plan_drafts(
    rates: Sequence[float],
    limits: Sequence[int],
    step_s: Callable[[int], float],
    rounds_s: Sequence[Callable[[int], float] | None] = (),
) -> Counter[int]:
    """The number of draft tokens for each sequence that makes a step yield the most tokens per second.

    With an acceptance rate p, the j-th draft token is accepted with probability pʲ. So rows are added in the order of
    these probabilities, over all sequences, as long as the expected rate grows. The j-th draft tokens of all sequences
    that share a proposer are one round of it.

    Args:
        rates: the acceptance rate of each sequence.
        limits: the most draft tokens of each.
        step_s: the seconds of a step, by number of rows.
        rounds_s: the seconds of a round of each sequence's proposer (see `Proposer.round_s`); empty if all are free.

    Returns:
        The number of draft tokens, by index of the sequence.
    """
    n = len(rates)
    # The next row of each sequence, the most likely to be accepted first.
    rows = [(-p, i, 1) for i, p in enumerate(rates) if p >= MIN_ACCEPTANCE_RATE and limits[i] > 0]
    heapify(rows)
    taken: list[int] = []  # the sequence of each added row
    # The first row of a round carries the cost of the entire round, so more rows must be tried before it pays.
    lookahead = max(LOOKAHEAD_ROWS, sum(round_s is not None for round_s in rounds_s))
    in_round: Counter[tuple[Callable[[int], float], int]] = Counter()
    tokens, drafting_s, n_best, best = float(n), 0.0, 0, MIN_SPEEDUP * n / step_s(n)
    while rows and len(taken) - n_best < lookahead:
        loss, i, j = rows[0]
        gain = rates[i] ** (j + 1)
        if j < min(limits[i], MAX_DRAFT_TOKENS) and gain >= MIN_ACCEPTANCE_RATE:
            heapreplace(rows, (-gain, i, j + 1))
        else:
            heappop(rows)
        taken.append(i)
        tokens -= loss
        if rounds_s and (round_s := rounds_s[i]) is not None:
            k = in_round[round_s, j]
            drafting_s += round_s(k + 1) - (round_s(k) if k else 0.0)
            in_round[round_s, j] = k + 1
        rate = tokens / (step_s(n + len(taken)) + drafting_s)
        if rate > best:
            n_best, best = len(taken), rate
    return Counter(taken[:n_best])
