"""Reads a tokenizer's files; whatever is wrong with one is a TokenizerError."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.errors import SourceError, TokenizerError
from rushlight.files.limits import MAX_TOKENIZER_FILE_BYTES
from rushlight.files.strict_json import parse_json_object
from rushlight.files.text_file import read_bytes, read_text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any

__all__ = ["parse_tokenizer_json", "read_tokenizer_bytes", "read_tokenizer_object", "read_tokenizer_text"]


def read_tokenizer_bytes(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_TOKENIZER_FILE_BYTES, first: int | None = None
) -> bytes:
    """The content of a regular file of at most `max_bytes`, or only its `first` bytes.

    Raises:
        TokenizerError: no such file, not a regular one, too large, or another kind of file, such as a Git LFS pointer.
    """
    with _source_errors_as_tokenizer_errors():
        return read_bytes(path, max_bytes=max_bytes, first=first, error=TokenizerError)


def read_tokenizer_text(path: str | os.PathLike[str]) -> str:
    """The text of a file of at most `MAX_TOKENIZER_FILE_BYTES`.

    Raises:
        TokenizerError: as `read_tokenizer_bytes`, or the file is not UTF-8.
    """
    with _source_errors_as_tokenizer_errors():
        return read_text(path, max_bytes=MAX_TOKENIZER_FILE_BYTES, error=TokenizerError)


def read_tokenizer_object(path: str | os.PathLike[str], *, max_bytes: int = MAX_TOKENIZER_FILE_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        TokenizerError: as `read_tokenizer_bytes` and `parse_tokenizer_json`.
    """
    return parse_tokenizer_json(read_tokenizer_bytes(path, max_bytes=max_bytes), path)


def parse_tokenizer_json(raw: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in `raw`, the content of `path`.

    Raises:
        TokenizerError: `parse_json_object` refuses it.
    """
    return parse_json_object(raw, file=path, error=TokenizerError, remedy="download the file again")


@contextmanager
def _source_errors_as_tokenizer_errors() -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        raise TokenizerError(
            error.message,
            file=error.file,
            found=error.found,
            remedy=error.remedy or "a tokenizer is a tokenizer.json, or a vocab.json and a merges.txt",
        ) from None
