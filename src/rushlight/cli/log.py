"""What the library has to tell while a command runs."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.terminal import erase_status, say_wrapped
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Within the block, what the library has to tell (its "rushlight" logger) appears on stderr as `note: ...`."""
    logger = logging.getLogger("rushlight")
    handler, level = _Notes(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    """Shows each note once, such as that of a checkpoint that is opened twice; each time where the record wants it."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message in self._shown and not getattr(record, "each_time", False):
            return
        self._shown.add(message)
        erase_status()
        say_wrapped(f"note: {printable_line(message)}")
