"""The digests of many results by the index of their lines."""

from __future__ import annotations

from array import array

_PAGE = 64
"""Numbers that are kept together: many, so that a long job takes little more than 8 bytes a line, and few, so that
results whose indices lie far apart take little more than their lines in the file."""


class Digests:
    """Numbers above 0 and below 2⁶⁴ by index, in memory that follows how many there are, not how high the indices."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def get(self, index: int) -> int:
        """The number of an index; 0 if it has none."""
        page = self._pages.get(index // _PAGE)
        return page[index % _PAGE] if page else 0

    def set(self, index: int, number: int) -> None:
        """Gives an index its number."""
        page = self._pages.setdefault(index // _PAGE, array("Q"))
        if not page:
            page.frombytes(bytes(8 * _PAGE))
        self._n += not page[index % _PAGE]
        page[index % _PAGE] = number
