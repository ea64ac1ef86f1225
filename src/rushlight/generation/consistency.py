"""Detects shared state that an interrupt left half changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Consistency:
    """A context manager around every change of state that takes several lines.

    A KeyboardInterrupt may arrive between any two lines, and then no lock or `finally` can complete the change. So the
    state counts as inconsistent from entry until a clean exit; its owner rebuilds it before the next use.

    Attributes:
        holds: whether every change has completed.
    """

    __slots__ = ("holds",)

    def __init__(self) -> None:
        self.holds = True

    def __enter__(self) -> None:
        self.holds = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.holds = True
