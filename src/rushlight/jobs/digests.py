"""A compact map from line indices to the digests of their results."""

from __future__ import annotations

from array import array

_PAGE = 64
"""Numbers per page: enough that a long job takes little more than 8 bytes per line, few enough that results with
distant indices take little more memory than their lines in the file."""


class Digests:
    """Numbers from 1 to 2⁶⁴ - 1 by index. Memory grows with their count, not with the indices."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def get(self, index: int) -> int:
        """The number of an index; 0 if there is none."""
        page = self._pages.get(index // _PAGE)
        return page[index % _PAGE] if page else 0

    def set(self, index: int, number: int) -> None:
        """Sets the number of an index."""
        page = self._pages.setdefault(index // _PAGE, array("Q"))
        if not page:
            page.frombytes(bytes(8 * _PAGE))
        self._n += not page[index % _PAGE]
        page[index % _PAGE] = number
