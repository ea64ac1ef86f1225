"""Stop strings: ends a streamed text before the first of them, and never shows any part of it."""

from __future__ import annotations

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
    """A filter for streamed text that passes it on until the first stop string is complete.

    The text ends where that stop string begins; if several are complete at the same character, the longest counts. A
    character is held back only while it can still be part of a stop string. The result does not depend on how the text
    is cut into pieces.

    Args:
        stop: one string or several, at most `MAX_STOP_STRINGS` of at most `MAX_STOP_CHARS` characters each; without
            any, all text passes.

    Attributes:
        strings: all of them.

    Raises:
        RequestError: too many, too long, empty, or not Unicode text.
    """

    def __init__(self, stop: str | Sequence[str] | None = ()) -> None:
        stop = () if stop is None else stop
        self.strings = tuple([stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else stop)
        if len(self.strings) > MAX_STOP_STRINGS:
            raise RequestError("too many stop strings", expected=f"at most {MAX_STOP_STRINGS}", found=len(self.strings))
        for string in self.strings:
            _check(string)
        # Proper prefixes. Looking up every tail of the text costs at most 255 lookups a piece, whatever the strings.
        self._prefixes = {string[:n] for string in self.strings for n in range(1, len(string))}
        self._max_held_chars = max(map(len, self.strings), default=1) - 1
        self._held = ""
        self._stopped = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.strings)

    def push(self, piece: str) -> tuple[str, bool]:
        """Returns the text to show after `piece`, and whether a stop string is complete; from then on, no more text."""
        if self._stopped:
            return "", True
        text = self._held + piece
        starts = [(start + len(string), start) for string in self.strings if (start := text.find(string)) >= 0]
        if starts:
            self._held, self._stopped = "", True
            return text[: min(starts)[1]], True
        self._held = self._longest_prefix_at_end_of(text)
        return text[: len(text) - len(self._held)], False

    def flush(self) -> str:
        """Returns the text held back, at the end of the text: the start of a stop string that was not completed."""
        held, self._held = self._held, ""
        return held

    def _longest_prefix_at_end_of(self, text: str) -> str:
        tails = (text[start:] for start in range(max(0, len(text) - self._max_held_chars), len(text)))
        return next(filter(self._prefixes.__contains__, tails), "")


def _check(string: object) -> None:
    if not isinstance(string, str):
        raise RequestError("stop strings must be str", found=short_repr(string))
    if not 1 <= len(string) <= MAX_STOP_CHARS:
        raise RequestError(
            "a stop string is empty or too long",
            expected=f"1 to {MAX_STOP_CHARS} characters",
            found=f"{len(string):,}",
        )
    if any("\ud800" <= character <= "\udfff" for character in string):
        raise RequestError("a stop string contains half of a surrogate pair", found=short_repr(string))
