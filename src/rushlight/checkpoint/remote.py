"""Reads the headers of checkpoints on a web server: a few KiB of files of any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin, urlsplit

from rushlight.checkpoint.checkpoint import Shard, read_header
from rushlight.checkpoint.header import MAX_HEADER_BYTES, PREFIX_BYTES, START_BYTES
from rushlight.checkpoint.http import get_range
from rushlight.checkpoint.shards import MAX_INDEX_BYTES, Index
from rushlight.errors import CheckpointError, FormatError, SourceError, TruncatedError
from rushlight.files.sniff import SNIFF_BYTES
from rushlight.files.strict_json import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RemoteFile", "open_remote"]

FIRST_BYTES = 64 << 10
"""The size of the first request; nearly every header is smaller."""
MAX_SHARDS = 2_000

_AT_ONCE = 8
"""Shards requested at the same time."""
_CHECK = "check that this is the URL you meant"


def open_remote(url: str, authorization: str | None = None) -> tuple[list[Shard], Index | None]:
    """The headers of the safetensors file at `url`; or those of the shards of the index there, and the index.

    Args:
        url: of an index if its path ends in .json, otherwise of a safetensors file.
        authorization: the Authorization header, which is sent to the host of `url` and to no other.

    Raises:
        SourceError: the server refuses, is too slow, or cannot be reached.
        CheckpointError: a file is not a valid safetensors file, or the index is malformed.
    """
    if not urlsplit(url).path.endswith(".json"):
        return [_open_shard(url, authorization)], None
    file = RemoteFile(url, authorization, wanted=lambda _: MAX_INDEX_BYTES)
    if file.size > MAX_INDEX_BYTES:
        raise FormatError(
            "too large to be an index",
            file=url,
            expected=f"at most {MAX_INDEX_BYTES:,} bytes",
            found=f"{file.size:,}",
            remedy=_CHECK,
        )
    index = Index.parse(parse_json_object(file.read(0, file.size), file=url), url)
    names = index.names
    if len(names) > MAX_SHARDS:
        raise FormatError(
            "too many files",
            file=url,
            expected=f"at most {MAX_SHARDS:,}",
            found=f"{len(names):,}",
            remedy="download them, and use the path of their index",
        )
    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        opening = [pool.submit(_open_shard, urljoin(url, quote(name)), authorization, name) for name in names]
        try:
            shards = [shard.result() for shard in opening]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return shards, index


def _open_shard(url: str, authorization: str | None, name: str | None = None) -> Shard:
    file = RemoteFile(url, authorization, name=name)
    try:
        return Shard(file, read_header(file))
    except CheckpointError as error:
        error.file = url  # instead of the bare name
        error.remedy = error.remedy or _CHECK
        raise


class RemoteFile:
    """A file on a web server. Reads fetch the start of the file, as far as needed.

    Attributes:
        url: its URL.
        path: its name, as in the index if there is one.
        size: its size in bytes, according to the server.

    Raises:
        SourceError, FormatError, TruncatedError: as `http.get_range`.
    """

    def __init__(
        self,
        url: str,
        authorization: str | None = None,
        *,
        wanted: Callable[[bytearray], int] | None = None,
        name: str | None = None,
    ) -> None:
        self.url = url
        self.path = Path(name or unquote(urlsplit(url).path).rpartition("/")[2] or "checkpoint")
        self._authorization = authorization
        first = get_range(url, 0, FIRST_BYTES, wanted=wanted or _header_end, authorization=authorization)
        self._start = bytearray(first.body)
        self._version = first.version
        self.size = first.size

    def read(self, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` bytes from `offset`, which should be near the start: everything before it is fetched too.

        Raises:
            SourceError, FormatError, TruncatedError: as `http.get_range`; or the file has changed.
        """
        end = offset + n_bytes
        have = len(self._start)
        if end > have:
            more = get_range(self.url, have, end, wanted=lambda _: end, authorization=self._authorization)
            if (more.size, more.version) != (self.size, self._version):
                raise TruncatedError("the file was changed while it was being read", file=self.url, remedy="try again")
            self._start[more.begin :] = more.body
        return bytes(self._start[offset:end])

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Refuses to read weights.

        Raises:
            SourceError: always.
        """
        raise SourceError(
            f"only the header of a remote file is read, not {len(buffer):,} bytes at {offset:,}",
            file=self.url,
            remedy="download the checkpoint, and use its path",
        )

    def close(self) -> None:
        """Does nothing: connections are closed after each request."""


def _header_end(start: bytearray) -> int:
    """How many bytes of a file to fetch, given its start: its header, or enough to recognise another kind of file."""
    if len(start) < START_BYTES:
        return START_BYTES
    n_bytes = int.from_bytes(start[:PREFIX_BYTES], "little")
    if start[PREFIX_BYTES] != ord("{") or n_bytes > MAX_HEADER_BYTES:
        return SNIFF_BYTES
    return PREFIX_BYTES + n_bytes
