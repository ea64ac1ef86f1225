"""Names for prefixes of whole blocks, by which their blocks are found in every group of layers."""

from __future__ import annotations

from itertools import count

ROOT_ID = 0
"""The id of the empty prefix."""

Key = tuple[int, tuple[int, ...]]
"""A prefix: the id of the prefix before its last block, and the tokens of that block."""


class PrefixTree:
    """Gives prefixes ids, which are never used again, and forgets a prefix when nothing holds it or a longer one.

    Tokens are compared exactly, not by hash: different prefixes never share an id.
    """

    def __init__(self) -> None:
        self._ids: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._n_holders: dict[int, int] = {}
        self._new_id = count(ROOT_ID + 1)

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, parent: int, tokens: tuple[int, ...]) -> int | None:
        """The id of the prefix that continues `parent` with these tokens; None if it is not known."""
        return self._ids.get((parent, tokens))

    def hold(self, prefix: int) -> None:
        """Keeps a prefix until `drop` is called as often."""
        if prefix != ROOT_ID:
            self._n_holders[prefix] += 1

    def hold_child(self, parent: int, tokens: tuple[int, ...]) -> int:
        """Names the prefix that continues `parent` with these tokens, and holds it: its id."""
        key = parent, tokens
        prefix = self._ids.get(key)
        if prefix is None:
            prefix = self._ids[key] = next(self._new_id)
            self._keys[prefix] = key
            self._n_holders[prefix] = 0
            self.hold(parent)
        self.hold(prefix)
        return prefix

    def drop(self, prefix: int) -> None:
        """Removes a hold; prefixes that nothing holds any more are forgotten."""
        while prefix != ROOT_ID:
            self._n_holders[prefix] -= 1
            if self._n_holders[prefix]:
                return
            key = self._keys.pop(prefix)
            del self._ids[key], self._n_holders[prefix]
            prefix = key[0]
