"""The beginning of a file on a web server, and no more of it: GET with a Range, watched at every turn.

https only, but for this machine itself; redirects are followed a few times, never to http and never with the
credentials; no compression, because an offset must mean an offset; and a time after which a request is over, however
slowly its answer still comes. `http.client` and not a library above it: those follow redirects, decompress and wait in
their own ways, and what is needed here is small.
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
_DOWNLOAD = "download the file and name its path"
_SIGN_IN = "the file asks for a sign-in: download it with one and name its path; for a hub model, set HF_TOKEN"
_REMEDIES = {
    401: _SIGN_IN,
    403: _SIGN_IN,
    404: "check the address",
    410: "check the address",
    429: "too many requests came from here: wait some minutes",
}


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """Some bytes of a file on a server.

    Attributes:
        begin: where in the file the bytes are from: as asked, or 0 if the server knows no ranges.
        body: the bytes.
        size: bytes in the whole file.
        version: equal for two answers only while the file is the same, as far as the server tells.
    """

    begin: int
    body: bytes
    size: int
    version: str


def check_url(url: str) -> SplitResult:
    """The parts of a URL that may be asked: https, or http on this machine.

    Raises:
        SourceError: it is neither, or it holds a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SourceError(f"not an address: {printable_name(str(error))}", remedy="check the address") from None
    if parts.scheme not in ("https", "http") or not host or any(c <= " " or c == "\x7f" for c in url):
        raise SourceError("only https:// addresses are read", remedy=_DOWNLOAD)
    if parts.username is not None:
        raise SourceError("an address with a user name or password in it is not asked", remedy=_DOWNLOAD)
    if parts.scheme == "http" and not _is_this_machine(host):
        raise SourceError("what comes over http can be changed on its way", remedy="use the https:// address")
    return parts


def get_range(
    url: str,
    begin: int,
    end: int,
    *,
    enough: Callable[[bytearray], int],
    authorization: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> RangeResponse:
    """The bytes of the file at `url` from `begin` to before `end`, or to its end.

    A server that knows no ranges sends the file from its first byte; then it is read for as long as `enough`, which is
    given what came so far, wants more bytes than that, and the connection is closed.

    Raises:
        SourceError: the server cannot be reached, refuses, redirects without end or to where it may not, answers too
            slowly or with something other than what was asked.
        FormatError: the answer is a page for people.
        TruncatedError: the answer ends before it said it would, or the file is empty.
    """
    give_up = time.monotonic() + deadline_s
    parts = check_url(url)
    headers = {
        "Range": f"bytes={begin}-{end - 1}",
        "Accept-Encoding": "identity",
        "User-Agent": "rushlight",
    }
    secret = {"Authorization": authorization} if authorization else {}
    origin = _origin(parts)
    for _ in range(MAX_REDIRECTS + 1):
        request = _Request(parts, headers | (secret if _origin(parts) == origin else {}), give_up, url)
        with request:
            response = request.response
            if response.status not in _REDIRECTS:
                return _read(request, response, begin, end, enough, url)
            location = response.getheader("Location")
        if not location:
            raise SourceError("the server redirects to nowhere", file=url, remedy=_DOWNLOAD)
        if _origin(parts) != origin:
            secret = {}  # a way back does not bring it back
        previous, parts = parts, _redirected(parts, location, url)
        if previous.scheme == "https" and parts.scheme != "https":
            raise SourceError("the server redirects from https to http", file=url, remedy=_DOWNLOAD)
    raise SourceError(f"the server redirects more than {MAX_REDIRECTS} times", file=url, remedy=_DOWNLOAD)


def _redirected(previous: SplitResult, location: str, url: str) -> SplitResult:
    """As `check_url`, of where a request for `url` is redirected to from `previous`.

    Raises:
        SourceError: it is not an address, or may not be asked.
    """
    try:
        return check_url(urljoin(previous.geturl(), location))
    except ValueError as error:
        problem = f"not an address: {printable_name(str(error))}"
    except SourceError as error:
        problem = error.message
    raise SourceError(f"the server redirects to where nothing is read: {problem}", file=url, remedy=_DOWNLOAD)


def _read(
    request: _Request,
    response: http.client.HTTPResponse,
    begin: int,
    end: int,
    enough: Callable[[bytearray], int],
    url: str,
) -> RangeResponse:
    if response.status == 416:
        raise TruncatedError("the file has no such bytes: it is empty, or was cut", file=url, remedy=_DOWNLOAD)
    if response.status not in (200, 206):
        remedy = _REMEDIES.get(response.status, "try again later")
        raise SourceError(f"the server answered {response.status}", file=url, remedy=remedy)
    kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        remedy = "use the address of the file itself: on the hub, with /resolve/ where the page has /blob/"
        raise FormatError("not safetensors but an HTML page", file=url, remedy=remedy)
    coding = response.getheader("Content-Encoding") or "identity"
    if coding.strip().lower() != "identity":
        found = printable_name(coding[:40])
        raise SourceError("the server sends the file compressed", file=url, found=found, remedy=_DOWNLOAD)
    version = response.getheader("ETag") or response.getheader("Last-Modified") or ""
    if response.status == 206:
        told = response.getheader("Content-Range") or ""
        numbers = _CONTENT_RANGE.fullmatch(told.strip())
        first, last, size = map(int, numbers.groups()) if numbers else (-1, -1, -1)
        if first != begin or last != min(end, size) - 1:
            raise SourceError(
                "the server sends another range than it was asked for",
                file=url,
                expected=f"bytes {begin}-{end - 1}",
                found=printable_name(told[:80]) or "no Content-Range",
                remedy=_DOWNLOAD,
            )
        n_bytes = last + 1 - first
        return RangeResponse(begin, request.read(n_bytes, lambda _: n_bytes), size, version)
    length = response.length
    if length is None:
        raise SourceError("the server does not say how large the file is", file=url, remedy=_DOWNLOAD)
    return RangeResponse(0, request.read(length, enough), length, version)


class _Request:
    """One GET and its answer as it arrives; a context manager. After `give_up`, a monotonic time, it is cut off."""

    def __init__(self, parts: SplitResult, headers: dict[str, str], give_up: float, url: str) -> None:
        self.url = url
        self.too_late = False
        self.timer: threading.Timer | None = None
        self.connection = _connection(parts, max(0.001, give_up - time.monotonic()))
        try:
            self.connection.connect()
            self.timer = threading.Timer(max(0.0, give_up - time.monotonic()), self._cut_off)
            self.timer.daemon = True
            self.timer.start()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self.connection.request("GET", target, headers=headers)
            self.response = self.connection.getresponse()
            if self.too_late:  # the headers ended where the connection was cut
                self.response.close()
                raise TimeoutError
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self.close()
            raise self._explained(error) from error
        except BaseException:
            self.close()
            raise

    def read(self, n_bytes: int, enough: Callable[[bytearray], int]) -> bytes:
        """The body up to `n_bytes`, for as long as `enough` of what came wants more. Memory grows with what arrives."""
        body = bytearray()
        while len(body) < (wanted := min(n_bytes, enough(body))):
            try:
                piece = self.response.read1(min(_PIECE_BYTES, wanted - len(body)))
            except (OSError, http.client.HTTPException) as error:
                raise self._explained(error) from error
            if not piece or self.too_late:
                break
            body += piece
        if self.too_late:
            raise self._explained(TimeoutError())
        if len(body) < wanted:
            raise TruncatedError(
                "the connection ended too soon",
                file=self.url,
                offset=len(body),
                expected=f"{wanted - len(body):,} more bytes",
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

    def _cut_off(self) -> None:
        self.too_late = True
        if self.connection.sock is not None:
            # Of the socket below TLS, whose own way to end would wait for the other side.
            with suppress(OSError):
                socket.shutdown(self.connection.sock, SHUT_RDWR)

    def _explained(self, error: Exception) -> SourceError:
        remedy = "check the address and the network, and try again"
        if self.too_late or isinstance(error, TimeoutError):
            message, remedy = "the server answers too slowly", "try again later, or download the file and name its path"
        elif isinstance(error, ssl.SSLCertVerificationError):
            message = f"the server's certificate is not to be trusted: {printable_name(error.verify_message)}"
        elif isinstance(error, OSError):
            message = f"the server cannot be reached: {printable_name(error.strerror or str(error))}"
        else:
            message = f"the server's answer is not HTTP: {printable_name(type(error).__name__)}"
        return SourceError(message, file=self.url, remedy=remedy)


def _connection(parts: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to the host of a URL, by the proxy that the environment names for it; nothing is sent yet."""
    host = str(parts.hostname)
    if parts.scheme == "http":  # this machine: no proxy has a say
        return http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    context = ssl.create_default_context()
    proxy = urllib.request.getproxies().get("https")
    if proxy is None or urllib.request.proxy_bypass(host):
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(
        str(through.hostname), through.port or 80, timeout=timeout_s, context=context
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
