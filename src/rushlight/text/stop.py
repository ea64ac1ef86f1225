"""Stop strings: found however the text is cut into pieces, and never shown, not even in part."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from reprlib import repr as short_repr
from typing import TYPE_CHECKING

from rushlight.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_STOP_CHARS", "MAX_STOP_STRINGS", "StopStrings"]

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256


class StopStrings:
    """A filter that text goes through until one of the stop strings has come.

    The text ends with the first character that completes a stop string, and is shown up to where that string began;
    where several are completed at once, the longest counts. A character is shown as soon as it can no more belong to a
    stop string. So the result does not depend on how the text was cut into pieces; the time is linear in the text.
    Source of the method: Aho and Corasick, "Efficient string matching", CACM 18 (1975).

    Args:
        stop: one string or several, at most `MAX_STOP_STRINGS` of at most `MAX_STOP_CHARS` characters; with none, or
            None, all text passes.

    Attributes:
        strings: all of them.

    Raises:
        RequestError: too many, too long, an empty one, or one that is not Unicode text.
    """

    def __init__(self, stop: str | Sequence[str] | None = ()) -> None:
        stop = () if stop is None else stop
        strings = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
        if len(strings) > MAX_STOP_STRINGS:
            raise RequestError("too many stop strings", expected=f"at most {MAX_STOP_STRINGS}", found=len(strings))
        for string in strings:
            if not isinstance(string, str):
                raise RequestError("a stop string is not text", found=short_repr(string))
            if not 1 <= len(string) <= MAX_STOP_CHARS:
                raise RequestError(
                    "a stop string is empty or too long",
                    expected=f"1 to {MAX_STOP_CHARS} characters",
                    found=f"{len(string):,}",
                )
            if any("\ud800" <= character <= "\udfff" for character in string):
                raise RequestError("a stop string holds half of a surrogate pair", found=short_repr(string))
        self.strings = tuple(strings)
        self._root = _automaton(strings)
        self._state = self._root
        self._held = ""
        self._stopped = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._root.children)

    def push(self, piece: str) -> tuple[str, bool]:
        """Text to show after `piece`, and whether a stop string has come; after one, nothing more is shown."""
        if self._stopped:
            return "", True
        if not self:
            return piece, False
        text, start = self._held + piece, len(self._held)
        for end, character in enumerate(piece, start + 1):
            self._state = self._state.after(character)
            if self._state.stop_chars:
                self._held, self._stopped = "", True
                return text[: end - self._state.stop_chars], True
        shown = len(text) - self._state.depth
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """The text held back, once there is no more to come: the beginning of a stop string that did not go on."""
        held, self._held, self._state = self._held, "", self._root
        return held


class _State:
    """The longest end of the text that begins a stop string: a node of the trie of all of them.

    Attributes:
        depth: its characters.
        stop_chars: the length of the longest stop string that ends here; 0 if none does.
        children: the nodes one character longer.
        shorter: the next shorter end of the text that begins a stop string; None at the root.
    """

    __slots__ = ("children", "depth", "shorter", "stop_chars")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.stop_chars = 0
        self.children: dict[str, _State] = {}
        self.shorter: _State | None = None

    def after(self, character: str) -> _State:
        state = self
        while character not in state.children:
            if state.shorter is None:
                return state
            state = state.shorter
        return state.children[character]


def _automaton(strings: list[str]) -> _State:
    root = _State(0)
    for string in strings:
        state = root
        for character in string:
            state = state.children.setdefault(character, _State(state.depth + 1))
        state.stop_chars = len(string)
    # Breadth first: what a node needs to know of shorter ones is then known.
    queue = deque([root])
    while queue:
        state = queue.popleft()
        for character, child in state.children.items():
            child.shorter = root if state.shorter is None else state.shorter.after(character)
            child.stop_chars = child.stop_chars or child.shorter.stop_chars
            queue.append(child)
    return root
