"""Detects that an interrupt left shared state half changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Consistency:
    """A context manager around every change of state that several lines make together.

    A KeyboardInterrupt may arrive between any two lines, and no lock or `finally` can finish the change then. So the
    state counts as inconsistent from entry until a clean exit; its owner rebuilds it before using it again.

    Attributes:
        holds: whether no change was cut off.
    """

    __slots__ = ("holds",)

    def __init__(self) -> None:
        self.holds = True

    def __enter__(self) -> None:
        self.holds = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.holds = True
