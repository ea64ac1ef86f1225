"""Many things in one message: the first ten, and how many more there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.errors import printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["first_ten"]


def first_ten(items: Sequence[str]) -> list[str]:
    """The first ten of `items`, each on one line and printable, and "and N more" if there are more."""
    more = [f"and {len(items) - 10:,} more"] if len(items) > 10 else []
    return [*map(printable_name, items[:10]), *more]
