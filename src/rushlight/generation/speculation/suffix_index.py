"""The longest end of a text that stood in it before, after every token, in time linear in the text."""

from __future__ import annotations


class SuffixIndex:
    """A suffix automaton, grown token by token (Blumer et al., Theoretical Computer Science 40, 1985).

    A state stands for token sequences that end at the same places. The state of the whole text links to that of its
    longest end that stands elsewhere too, which is all that is asked of it.

    Attributes:
        ids: the tokens so far.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._lengths = [0]  # of each state's longest sequence
        self._links = [-1]
        self._ends = [0]  # how many tokens there are up to the end of one of its occurrences
        self._steps: list[dict[int, int]] = [{}]
        self._whole = 0

    def append(self, token: int) -> None:
        """Takes the next token of the text."""
        # The occurrence that `match` tells of next time is this one.
        self._ends[max(self._links[self._whole], 0)] = len(self.ids)
        self.ids.append(token)
        whole = self._state(self._lengths[self._whole] + 1, len(self.ids), {})
        state = self._whole
        while state >= 0 and token not in self._steps[state]:
            self._steps[state][token] = whole
            state = self._links[state]
        self._links[whole] = 0 if state < 0 else self._after(state, token)
        self._whole = whole

    def match(self) -> tuple[int, int]:
        """The length of the longest end of the text that stood before, and how many tokens there are up to there."""
        link = max(self._links[self._whole], 0)
        return self._lengths[link], self._ends[link]

    def _after(self, state: int, token: int) -> int:
        """The state of the longest sequence of `state` and the token, split off where longer ones share its own."""
        longer = self._steps[state][token]
        if self._lengths[longer] == self._lengths[state] + 1:
            return longer
        split = self._state(self._lengths[state] + 1, self._ends[longer], dict(self._steps[longer]))
        self._links[split], self._links[longer] = self._links[longer], split
        while state >= 0 and self._steps[state].get(token) == longer:
            self._steps[state][token] = split
            state = self._links[state]
        return split

    def _state(self, length: int, end: int, steps: dict[int, int]) -> int:
        self._lengths.append(length)
        self._links.append(-1)
        self._ends.append(end)
        self._steps.append(steps)
        return len(self._lengths) - 1
