"""Shows the log messages of the library as notes on stderr."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.cli.terminal import erase_status, note
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Within the block, messages of the "rushlight" logger from INFO up appear on stderr as `note: ...`."""
    logger = logging.getLogger("rushlight")
    handler, level = _Notes(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def without_notes_of_author() -> Iterator[None]:
    """Within the block, messages about the author's generation settings do not appear."""
    logger = logging.getLogger("rushlight")
    logger.addFilter(_is_not_of_author)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_of_author)


def _is_not_of_author(record: logging.LogRecord) -> bool:
    return not getattr(record, "of_author", False)


class _Notes(logging.Handler):
    """Shows each message once, or every time if the record has `each_time`."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message in self._shown and not getattr(record, "each_time", False):
            return
        self._shown.add(message)
        erase_status()
        note(printable_line(message))
