"""Parses the header of a safetensors file, strictly and in bounded memory.

A file is (https://github.com/huggingface/safetensors#format)

    8 bytes     n, the length of the header, unsigned, little-endian
    n bytes     the header: one JSON object in UTF-8, padded with white space
    the rest    the data section: the tensors back to back, row-major, little-endian

    {"__metadata__": {"format": "pt"},
     "wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, ...}

The grammar is flat, so the parser walks it key by key instead of building a tree of JSON values: it refuses nesting and
duplicate keys where they occur, its errors name the tensor and the byte, and memory holds only the text and the result.

The reference parser (the Rust crate in the PyPI package `safetensors` 0.8) accepts every header that is accepted here,
with the same result. It also accepts the following, all refused here on purpose:

    duplicate key        of a tensor or of metadata; the reference keeps the last
    null metadata        "__metadata__": null
    unknown field        in a tensor's entry; it could change the meaning of the others
    array for entry      ["F32", [1], [0, 4]] for {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    object for dtype     {"F32": null} for "F32"
    escaped field        an escape in the name of a field or in the dtype
    white space first    the format requires the brace
    high rank            more than 32 dimensions
    hidden overflow      dimensions whose product exceeds 63 bits, with a 0 among them
    sub-byte dtype       F4, F6_E2M3, F6_E3M2
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rushlight.checkpoint.dtypes import DTYPES, SUB_BYTE_DTYPES
from rushlight.errors import FormatError, TruncatedError, printable_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_RANK",
    "PREFIX_BYTES",
    "START_BYTES",
    "Header",
    "TensorInfo",
    "header_bytes",
    "parse_header",
]

PREFIX_BYTES = 8
START_BYTES = PREFIX_BYTES + 1
"""The leading bytes that `header_bytes` needs: the length of the header, and its first brace."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""
MAX_RANK = 32
"""The most dimensions in every supported NumPy (1.26; NumPy 2 allows 64)."""

_MAX_TENSOR_BYTES = 2**63 - 1  # sizes are signed in NumPy
_MAX_SHOWN_CHARS = 100
_DOWNLOAD_AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in the header; `begin` and `end` are byte offsets in the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A valid header: the tensors in the order of their data, the metadata, and the offset of the data in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def header_bytes(start: bytes, file_bytes: int, *, file: str | os.PathLike[str] | None = None) -> int:
    """The length of the header in bytes, from the first `START_BYTES` bytes of a file of `file_bytes` bytes.

    Raises:
        TruncatedError: the file ends before the header does.
        FormatError: the length is 0 or greater than `MAX_HEADER_BYTES`, or is not followed by "{".
    """
    if len(start) < PREFIX_BYTES:
        raise TruncatedError(
            "too short to be safetensors",
            file=file,
            expected="at least 10 bytes",
            found=f"{len(start)} bytes" if len(start) != 1 else "1 byte",
            remedy=_DOWNLOAD_AGAIN,
        )
    n_bytes = int.from_bytes(start[:PREFIX_BYTES], "little")
    if n_bytes == 0:
        raise FormatError("too short to be safetensors: the header has no bytes", file=file, remedy=_DOWNLOAD_AGAIN)
    if n_bytes > MAX_HEADER_BYTES:
        raise FormatError(
            "not a safetensors file: the length of its header is out of range",
            file=file,
            offset=0,
            expected=f"at most {MAX_HEADER_BYTES:,} bytes",
            found=f"{n_bytes:,}",
        )
    if start[PREFIX_BYTES:START_BYTES] not in (b"{", b""):
        raise FormatError(
            "not a safetensors file: its header does not begin with a brace",
            file=file,
            offset=PREFIX_BYTES,
            expected="'{'",
            found=repr(start[PREFIX_BYTES:START_BYTES])[1:],
        )
    if PREFIX_BYTES + n_bytes > file_bytes:
        raise TruncatedError(
            "the file ends inside its header",
            file=file,
            expected=f"at least {PREFIX_BYTES + n_bytes:,} bytes",
            found=f"{file_bytes:,}",
            remedy=_DOWNLOAD_AGAIN,
        )
    return n_bytes


def parse_header(header: bytes, data_bytes: int, *, file: str | os.PathLike[str] | None = None) -> Header:
    """Parses a header, and checks it against the size of the data section that follows it in the file.

    The tensors returned cover the data section exactly: the size of each range follows from shape and dtype, the first
    begins at 0, each next one where the previous ends, and the last ends with the file.

    Raises:
        FormatError: the header violates the format; names the tensor and the byte.
        TruncatedError: the header is valid, but the data section is shorter than it states.
    """
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "the header is not UTF-8", file=file, offset=PREFIX_BYTES + error.start, remedy=_DOWNLOAD_AGAIN
        ) from None
    scanner = _Scanner(text, file)
    tensors: list[TensorInfo] = []
    metadata: dict[str, str] = {}
    for name in scanner.members():
        if name == "__metadata__":
            metadata = {key: scanner.string() for key in scanner.members()}
        else:
            tensors.append(_tensor(scanner, name))
    scanner.end()
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, data_bytes, file)
    return Header({tensor.name: tensor for tensor in tensors}, metadata, PREFIX_BYTES + len(header))


def _tensor(scanner: _Scanner, name: str) -> TensorInfo:
    """Reads the entry of tensor `name` at the scanner's position."""
    scanner.tensor = name
    fields = scanner.fields()
    if missing := [field for field in _FIELDS if field not in fields]:
        raise scanner.error(f"the entry is missing {' and '.join(missing)}")
    dtype = fields["dtype"]
    shape = _numbers(fields["shape"])
    begin, end = _numbers(fields["data_offsets"])
    if dtype not in DTYPES:
        kind = "dtypes smaller than a byte are not supported" if dtype in SUB_BYTE_DTYPES else "unknown dtype"
        raise scanner.error(kind, expected=f"one of {', '.join(DTYPES)}", found=printable_name(dtype))
    if begin > end:
        raise scanner.error("data_offsets end before they begin", found=[begin, end])
    n_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    # A dimension of 0 would hide that the product of the others overflows.
    if math.prod(dim or 1 for dim in shape) * DTYPES[dtype].itemsize > _MAX_TENSOR_BYTES:
        raise scanner.error("the size of the tensor overflows 64 bits", found=list(shape))
    if end - begin != n_bytes:
        raise scanner.error(
            "data_offsets do not match shape and dtype",
            expected=f"{n_bytes:,} bytes for {dtype} {list(shape)}",
            found=f"{end - begin:,} bytes",
        )
    scanner.tensor = None
    return TensorInfo(name, dtype, shape, begin, end)


def _numbers(inside: str) -> tuple[int, ...]:
    """The numbers in the text between the brackets of an array."""
    return () if not inside or inside.isspace() else tuple(map(int, inside.split(",")))


def _check_cover(tensors: list[TensorInfo], data_bytes: int, file: str | os.PathLike[str] | None) -> None:
    """Checks that `tensors`, in the order of their ranges, cover the data section without gap, overlap or remainder."""
    covered = 0
    previous: TensorInfo | None = None
    for tensor in tensors:
        if tensor.begin != covered:
            kind = "overlap" if tensor.begin < covered else "leave a gap after"
            place = f"those of {printable_name(previous.name)}" if previous else "the start of the data"
            raise FormatError(
                f"data_offsets {kind} {place}",
                file=file,
                tensor=tensor.name,
                expected=f"begin {covered:,}",
                found=f"begin {tensor.begin:,}",
            )
        covered = tensor.end
        previous = tensor
    if covered > data_bytes:
        first = next(tensor for tensor in tensors if tensor.end > data_bytes)
        raise TruncatedError(
            f"the file is truncated, bytes missing: {covered - data_bytes:,}",
            file=file,
            tensor=first.name,
            expected=f"{covered:,} bytes of data",
            found=f"{data_bytes:,}",
            remedy=_DOWNLOAD_AGAIN,
        )
    if covered < data_bytes:
        raise FormatError(
            f"the file continues after the last tensor, extra bytes: {data_bytes - covered:,}",
            file=file,
            expected=f"{covered:,} bytes of data",
            found=f"{data_bytes:,}",
            remedy=_DOWNLOAD_AGAIN,
        )


_SPACES = r"[ \t\n\r]*"
_NUMBER = rf"{_SPACES}(?:0|[1-9][0-9]{{0,19}}){_SPACES}"
_FIELDS = {
    "dtype": r'"(?P<dtype>[^"\\\x00-\x1f]{0,24})"',
    "shape": rf"\[(?P<shape>{_SPACES}|{_NUMBER}(?:,{_NUMBER}){{0,{MAX_RANK - 1}}})\]",
    "data_offsets": rf"\[(?P<data_offsets>{_NUMBER},{_NUMBER})\]",
}
_FIELD = re.compile("|".join(f'{_SPACES}"{name}"{_SPACES}:{_SPACES}{value}' for name, value in _FIELDS.items()))
_FIELD_EXPECTED = f'"dtype": "...", "shape": [at most {MAX_RANK} whole numbers] or "data_offsets": [begin, end]'
_SPACE = re.compile(_SPACES)
_PLAIN_STRING = re.compile(_SPACES + r'"([^"\\\x00-\x1f]*)"')
_decode_string = json.JSONDecoder().raw_decode


class _Scanner:
    """A cursor over the text of a header, with methods for the few forms of JSON in it."""

    def __init__(self, text: str, file: str | os.PathLike[str] | None) -> None:
        self.text = text
        self.at = 0
        self.file = file
        self.tensor: str | None = None

    def error(self, message: str, *, expected: object = None, found: object = None) -> FormatError:
        """An error at the cursor's position."""
        offset = PREFIX_BYTES + len(self.text[: self.at].encode())
        return FormatError(message, file=self.file, tensor=self.tensor, offset=offset, expected=expected, found=found)

    def peek(self) -> str:
        """Skips white space, and returns the next character, or "" at the end."""
        char = self.text[self.at : self.at + 1]
        if char <= " " and (space := _SPACE.match(self.text, self.at)):
            self.at = space.end()
            return self.text[self.at : self.at + 1]
        return char

    def take(self, char: str) -> None:
        """Consumes `char`."""
        if not self.text.startswith(char, self.at) and self.peek() != char:
            raise self.error("the header is malformed", expected=f"'{char}'", found=self._here())
        self.at += 1

    def string(self) -> str:
        """Consumes a JSON string, and returns its value."""
        if plain := _PLAIN_STRING.match(self.text, self.at):
            self.at = plain.end()
            return plain[1]
        if self.peek() != '"':
            raise self.error("the header is malformed", expected="a string", found=self._here())
        try:
            value: str
            value, end = _decode_string(self.text, self.at)
        except json.JSONDecodeError:
            raise self.error(
                "a string is unterminated, or contains an invalid escape or a control character", found=self._here()
            ) from None
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise self.error(
                "a string contains half of a surrogate pair", found=printable_name(value[:_MAX_SHOWN_CHARS])
            )
        self.at = end
        return value

    def fields(self) -> dict[str, str]:
        """Consumes the entry of a tensor, and returns its fields as text; arrays without their brackets."""
        self.take("{")
        fields: dict[str, str] = {}
        while field := _FIELD.match(self.text, self.at):
            name = str(field.lastgroup)
            if name in fields:
                raise self.error(f'the key "{name}" appears twice')
            fields[name] = field[name]
            self.at = field.end()
            if self.peek() != ",":
                self.take("}")
                return fields
            self.at += 1
        self.peek()
        raise self.error("the entry is malformed", expected=_FIELD_EXPECTED, found=self._here())

    def members(self) -> Iterator[str]:
        """Consumes an object: yields each key with the cursor at its value, which the caller must consume."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        seen: set[str] = set()
        while True:
            key = self.string()
            if key in seen:
                raise self.error(f'the key "{printable_name(key[:_MAX_SHOWN_CHARS])}" appears twice')
            seen.add(key)
            self.take(":")
            yield key
            if self.peek() != ",":
                break
            self.at += 1
        self.take("}")

    def end(self) -> None:
        """Requires that only white space follows."""
        if self.peek():
            raise self.error("the header continues after its object", found=self._here())

    def _here(self) -> str:
        """The text at the cursor, shortened, for a message."""
        if self.at >= len(self.text):
            return "the end of the header"
        return printable_name(self.text[self.at : self.at + 24])
