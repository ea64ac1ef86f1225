"""Fetches a range of a file from a web server, without trusting the server.

Only https, except from this machine; a few redirects, never to http and never with credentials to another host; no
compression, because it would shift offsets; and a deadline for the whole request, however slowly the response arrives.
It uses `http.client` because the libraries above it have their own ways to follow redirects, decompress and time out.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from rushlight.errors import FormatError, SourceError, TruncatedError, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RangeResponse", "check_url", "get_range"]

DEADLINE_S = 30.0
MAX_REDIRECTS = 5

_PIECE_BYTES = 64 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_DOWNLOAD = "download the file and use its path"
_SIGN_IN = "the file requires a sign-in: download it in a browser and use its path; for a hub model, set HF_TOKEN"
_REMEDIES = {
    401: _SIGN_IN,
    403: _SIGN_IN,
    404: "check the URL",
    410: "check the URL",
    429: "too many requests from this address: wait some minutes",
}


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """A range of a file.

    Attributes:
        begin: the offset of the range in the file: as requested, or 0 if the server does not support ranges.
        body: its bytes.
        size: the size of the file in bytes.
        version: its ETag or modification date, which differs once the file has changed.
    """

    begin: int
    body: bytes
    size: int
    version: str


def check_url(url: str) -> SplitResult:
    """The parts of a URL that may be fetched: https, or http on this machine.

    Raises:
        SourceError: another scheme or host, an invalid URL, or one with a user name or password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SourceError(f"not a URL: {printable_name(str(error))}", remedy="check the URL") from None
    if parts.scheme not in ("https", "http") or not host or any(c <= " " or c == "\x7f" for c in url):
        raise SourceError("only https:// URLs are read", remedy=_DOWNLOAD)
    if parts.username is not None:
        raise SourceError("URLs with a user name or password are not read", remedy=_DOWNLOAD)
    if parts.scheme == "http" and not _is_this_machine(host):
        raise SourceError("data from http:// can be altered in transit", remedy="use the https:// URL")
    return parts


def get_range(
    url: str,
    begin: int,
    end: int,
    *,
    wanted: Callable[[bytearray], int],
    authorization: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> RangeResponse:
    """The bytes of the file at `url` from `begin` up to `end`, or up to its end.

    Args:
        url: where the file is.
        begin, end: the range, as byte offsets.
        wanted: returns how many bytes to read, given those received so far, if the server does not support ranges and
            sends the file from its first byte. The connection is closed once they are there.
        authorization: the Authorization header, sent to the host of `url` and to no other.
        deadline_s: the longest time for the request, redirects and body included.

    Raises:
        SourceError: the server cannot be reached, refuses, redirects too often or to a forbidden URL, is too slow, or
            sends something other than the range.
        FormatError: the response is an HTML page.
        TruncatedError: the response ends too early, or the file is empty.
    """
    deadline = time.monotonic() + deadline_s
    parts = check_url(url)
    headers = {
        "Range": f"bytes={begin}-{end - 1}",
        "Accept-Encoding": "identity",
        "User-Agent": "rushlight",
    }
    secret = {"Authorization": authorization} if authorization else {}
    origin = _origin(parts)
    for _ in range(MAX_REDIRECTS + 1):
        request = _Request(parts, headers | (secret if _origin(parts) == origin else {}), deadline, url)
        with request:
            response = request.response
            if response.status not in _REDIRECTS:
                return _read(request, response, begin, end, wanted, url)
            location = response.getheader("Location")
        if not location:
            raise SourceError("the server redirects without a Location", file=url, remedy=_DOWNLOAD)
        if _origin(parts) != origin:
            secret = {}  # a redirect back to the first host does not get it again
        previous, parts = parts, _redirected(parts, location, url)
        if previous.scheme == "https" and parts.scheme != "https":
            raise SourceError("the server redirects from https to http", file=url, remedy=_DOWNLOAD)
    raise SourceError(f"the server redirects more than {MAX_REDIRECTS} times", file=url, remedy=_DOWNLOAD)


def _redirected(previous: SplitResult, location: str, url: str) -> SplitResult:
    """The parts of the URL that a request for `url` is redirected to, checked by `check_url`.

    Raises:
        SourceError: not a URL, or one that may not be fetched.
    """
    try:
        return check_url(urljoin(previous.geturl(), location))
    except ValueError as error:
        problem = f"not a URL: {printable_name(str(error))}"
    except SourceError as error:
        problem = error.message
    raise SourceError(f"the server redirects to a forbidden URL: {problem}", file=url, remedy=_DOWNLOAD)


def _read(
    request: _Request,
    response: http.client.HTTPResponse,
    begin: int,
    end: int,
    wanted: Callable[[bytearray], int],
    url: str,
) -> RangeResponse:
    if response.status == 416:
        raise TruncatedError("the file has no such bytes: it is empty or truncated", file=url, remedy=_DOWNLOAD)
    if response.status not in (200, 206):
        remedy = _REMEDIES.get(response.status, "try again later")
        raise SourceError(f"the server answered {response.status}", file=url, remedy=remedy)
    kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        remedy = "use the URL of the file itself: on the hub, with /resolve/ in place of /blob/"
        raise FormatError("not safetensors but an HTML page", file=url, remedy=remedy)
    coding = response.getheader("Content-Encoding") or "identity"
    if coding.strip().lower() != "identity":
        found = printable_name(coding[:40])
        raise SourceError("the server sends the file compressed", file=url, found=found, remedy=_DOWNLOAD)
    version = response.getheader("ETag") or response.getheader("Last-Modified") or ""
    if response.status == 206:
        content_range = response.getheader("Content-Range") or ""
        numbers = _CONTENT_RANGE.fullmatch(content_range.strip())
        first, last, size = map(int, numbers.groups()) if numbers else (-1, -1, -1)
        if first != begin or last != min(end, size) - 1:
            raise SourceError(
                "the server sends another range than requested",
                file=url,
                expected=f"bytes {begin}-{end - 1}",
                found=printable_name(content_range[:80]) or "no Content-Range",
                remedy=_DOWNLOAD,
            )
        n_bytes = last + 1 - first
        return RangeResponse(begin, request.read(n_bytes, lambda _: n_bytes), size, version)
    length = response.length
    if length is None:
        raise SourceError("the server does not state the size of the file", file=url, remedy=_DOWNLOAD)
    return RangeResponse(0, request.read(length, wanted), length, version)


class _Request:
    """One GET request and its response; a context manager. It is aborted at `deadline`, a monotonic time."""

    def __init__(self, parts: SplitResult, headers: dict[str, str], deadline: float, url: str) -> None:
        self.url = url
        self.timed_out = False
        self.timer: threading.Timer | None = None
        self.connection = _connection(parts, max(0.001, deadline - time.monotonic()))
        try:
            self.connection.connect()
            self.timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._abort)
            self.timer.daemon = True
            self.timer.start()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self.connection.request("GET", target, headers=headers)
            self.response = self.connection.getresponse()
            if self.timed_out:  # the headers ended where the connection was aborted
                self.response.close()
                raise TimeoutError
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self.close()
            raise self._translated(error) from error
        except BaseException:
            self.close()
            raise

    def read(self, n_bytes: int, wanted: Callable[[bytearray], int]) -> bytes:
        """The body up to `n_bytes`, until it has what `wanted` returns. Memory grows only with the bytes received."""
        body = bytearray()
        while len(body) < (n_wanted := min(n_bytes, wanted(body))):
            try:
                piece = self.response.read1(min(_PIECE_BYTES, n_wanted - len(body)))
            except (OSError, http.client.HTTPException) as error:
                raise self._translated(error) from error
            if not piece or self.timed_out:
                break
            body += piece
        if self.timed_out:
            raise self._translated(TimeoutError())
        if len(body) < n_wanted:
            raise TruncatedError(
                "the connection ended too early",
                file=self.url,
                offset=len(body),
                expected=f"{n_wanted - len(body):,} more bytes",
                remedy="try again",
            )
        return bytes(body)

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.connection.close()

    def __enter__(self) -> _Request:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.close()

    def _abort(self) -> None:
        self.timed_out = True
        if self.connection.sock is not None:
            # Shuts down the socket below TLS, whose own shutdown would wait for the server.
            with suppress(OSError):
                socket.shutdown(self.connection.sock, SHUT_RDWR)

    def _translated(self, error: Exception) -> SourceError:
        remedy = "check the URL and the network, and try again"
        if self.timed_out or isinstance(error, TimeoutError):
            message, remedy = "the server is too slow", "try again later, or download the file and use its path"
        elif isinstance(error, ssl.SSLCertVerificationError):
            message = f"the server's certificate cannot be verified: {printable_name(error.verify_message)}"
        elif isinstance(error, OSError):
            message = f"the server cannot be reached: {printable_name(error.strerror or str(error))}"
        else:
            message = f"the server's response is not valid HTTP: {printable_name(type(error).__name__)}"
        return SourceError(message, file=self.url, remedy=remedy)


def _connection(parts: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to the host of a URL, through the proxy in the environment if there is one; nothing is sent yet."""
    host = str(parts.hostname)
    if parts.scheme == "http":  # this machine, reached without a proxy
        return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    context = ssl.create_default_context()
    proxy = urllib.request.getproxies().get("https")
    if proxy is None or urllib.request.proxy_bypass(host):
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    proxy_parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(
        str(proxy_parts.hostname), proxy_parts.port or 80, timeout=timeout_s, context=context
    )
    connection.set_tunnel(host, parts.port)
    return connection


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}[parts.scheme]
