"""Reading lines of limited length from a file of any length."""

import io

import pytest

from rushlight.jobs import read_lines
from rushlight.jobs.lines import MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a\nb\n", [(0, b"a", 2), (1, b"b", 2)]),
        (b"a\r\nb", [(0, b"a", 3), (1, b"b", 1)]),
        (b"\n \na\n\n", [(2, b"a", 2)]),
        (b" a \n", [(0, b" a ", 4)]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [(0, b"a", 5), (1, b"\xef\xbb\xbfb", 5)]),
        (b"\xef\xbb\xbf\n", []),
    ],
)
def test_blank_lines_are_skipped(data, expected):
    lines = list(read_lines(io.BytesIO(data)))
    assert [(line.index, line.raw, line.n_bytes) for line in lines] == expected
    assert all(line.is_complete for line in lines)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("excess", [0, 1, 2, 3, MAX_LINE_BYTES, 2 * MAX_LINE_BYTES + 1])
def test_a_line_that_is_too_long_is_truncated(end, excess):
    data = b"x" * (MAX_LINE_BYTES + excess) + end
    first, *rest = read_lines(io.BytesIO(data + (b"next" if end else b"")))
    assert (first.index, first.n_bytes, first.is_complete) == (0, len(data), excess == 0)
    assert len(first.raw) <= MAX_LINE_BYTES + 2
    assert [(line.index, line.raw) for line in rest] == ([(1, b"next")] if end else [])
