"""Reads lines from a terminal, with editing, a persistent history and pasted text of several lines."""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.files.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LineEditor", "history_path"]

MAX_ENTRIES = 1000
MAX_HISTORY_BYTES = 4 << 20
PASTE_GAP_S = 0.03
"""Lines that arrive faster than this were pasted, not typed."""


def history_path() -> Path | None:
    """The history file in the XDG state directory; None if there is no home directory."""
    with suppress(RuntimeError):
        state = os.environ.get("XDG_STATE_HOME")
        folder = Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state"
        return folder / "rushlight" / "chat_history"
    return None


class LineEditor:
    """Reads messages from a terminal, with the readline module if Python has it.

    Pasted text is one message, even if it has several lines: GNU readline marks pastes (bracketed paste); without it,
    they are recognised by their speed. A line that ends with a backslash continues on the next line.

    Args:
        history: the history file, one JSON string per line, readable only by its owner; None keeps no history. An
            unusable file is ignored.
        words: the completions of the tab key.
    """

    def __init__(self, history: Path | None, words: Sequence[str] = ()) -> None:
        self._history = history
        self._marks_pastes = False
        try:
            import readline
        except ImportError:  # Windows
            self._readline = None
            return
        self._readline = readline
        readline.set_auto_history(False)
        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.parse_and_bind("tab: complete")
            self._marks_pastes = True
        readline.set_completer_delims("")
        readline.set_completer(lambda text, n: [*(w for w in words if text and w.startswith(text)), None][n])
        for entry in self._load():
            readline.add_history(entry)

    def read(self, prompt: str) -> str:
        """The next message, without the newline at its end.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C.
        """
        lines = [input(prompt)]
        while True:
            if lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(input("  "))
            elif not self._marks_pastes and _has_more_input():
                lines.append(input())
            else:
                break
        text = "\n".join(lines)
        if text.strip():
            self._remember(text)
        return text

    def _remember(self, text: str) -> None:
        if self._readline is not None:
            self._readline.add_history(text)
        if self._history is not None:
            try:
                self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                with os.fdopen(os.open(self._history, flags, 0o600), "w", encoding="utf-8") as file:
                    file.write(json.dumps(text) + "\n")
            except OSError:
                self._history = None

    def _load(self) -> list[str]:
        """The last MAX_ENTRIES entries; a file with twice as many is truncated to them."""
        if self._history is None:
            return []
        try:
            with self._history.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_HISTORY_BYTES))
                lines = file.read().splitlines()
            entries = []
            for line in lines:
                with suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, str):
                        entries.append(entry)
            kept = entries[-MAX_ENTRIES:]
            if len(lines) > 2 * MAX_ENTRIES:
                atomic_write(self._history, "".join(json.dumps(entry) + "\n" for entry in kept).encode(), private=True)
        except OSError:
            return []
        return kept


def _has_more_input() -> bool:
    """Whether the terminal already has another line."""
    if os.name != "posix":
        return False
    return bool(select.select([sys.stdin], [], [], PASTE_GAP_S)[0])
