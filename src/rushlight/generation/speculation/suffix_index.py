"""Finds the longest suffix of a growing sequence that occurs earlier in it, in linear time."""

from __future__ import annotations


class SuffixIndex:
    """A suffix automaton, grown token by token (Blumer et al., Theoretical Computer Science 40, 1985).

    A state is a set of subsequences that end at the same positions. The link of the entire sequence's state leads to
    its longest suffix that also ends elsewhere, which is the only query needed here.

    Attributes:
        ids: the tokens so far.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._lengths = [0]  # of the longest subsequence of each state
        self._links = [-1]
        self._ends = [0]  # the number of tokens up to the end of one occurrence
        self._edges: list[dict[int, int]] = [{}]
        self._last = 0  # the state of the entire sequence

    def append(self, token: int) -> None:
        """Adds the next token."""
        # From now on `match` reports this occurrence, the most recent one.
        self._ends[max(self._links[self._last], 0)] = len(self.ids)
        self.ids.append(token)
        last = self._state(self._lengths[self._last] + 1, len(self.ids), {})
        state = self._last
        while state >= 0 and token not in self._edges[state]:
            self._edges[state][token] = last
            state = self._links[state]
        self._links[last] = 0 if state < 0 else self._after(state, token)
        self._last = last

    def match(self) -> tuple[int, int]:
        """The length of the longest suffix that occurred before, and the number of tokens up to its end there."""
        link = max(self._links[self._last], 0)
        return self._lengths[link], self._ends[link]

    def _after(self, state: int, token: int) -> int:
        """The state of `state`'s longest subsequence plus the token, split off if its state has longer ones too."""
        longer = self._edges[state][token]
        if self._lengths[longer] == self._lengths[state] + 1:
            return longer
        split = self._state(self._lengths[state] + 1, self._ends[longer], dict(self._edges[longer]))
        self._links[split], self._links[longer] = self._links[longer], split
        while state >= 0 and self._edges[state].get(token) == longer:
            self._edges[state][token] = split
            state = self._links[state]
        return split

    def _state(self, length: int, end: int, edges: dict[int, int]) -> int:
        self._lengths.append(length)
        self._links.append(-1)
        self._ends.append(end)
        self._edges.append(edges)
        return len(self._lengths) - 1
