"""Headers over HTTP, from a server on this machine that records its requests and fails on demand."""

import gzip
import http.client
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

import rushlight
from rushlight.checkpoint import http as remote_http
from rushlight.checkpoint import open_headers
from rushlight.checkpoint.remote import FIRST_BYTES
from rushlight.errors import FormatError, RushlightError, SourceError, TruncatedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = save({"a": np.arange(50_000, dtype="<f4"), "b": np.zeros((2, 3), np.float16)}, {"format": "pt"})
MANY = save({f"h.{i}.{'long_name_' * 10}": np.zeros(1, np.float32) for i in range(2_000)})
"""A file whose header is larger than the first request."""


@dataclass
class Server:
    """Serves `files`, {path: content}; `answer`, if set, is called with each request's handler instead.

    Attributes:
        ranges: whether range requests are honoured.
        received: (path, Range, Authorization) of each request.
        sent: bytes of bodies that were written, or are about to be.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    answer: object = None
    ranges: bool = True
    received: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self):
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def requested_bytes(self):
        """Returns the sum of the lengths of all requested ranges."""
        edges = [received[1].removeprefix("bytes=").split("-") for received in self.received]
        return sum(int(last) + 1 - int(first) for first, last in edges)


class _Handler(BaseHTTPRequestHandler):
    owner: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.owner.received.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        try:
            if self.owner.answer:
                self.owner.answer(self)
            else:
                self.file(self.owner.files.get(urlsplit(self.path).path))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def file(self, content, headers=None):
        if content is None:
            self.send(404, b"not here")
            return
        first, last = self.wanted()
        if not self.owner.ranges:
            self.send(200, content, headers)
        elif first >= len(content):
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            piece = content[first : last + 1]
            content_range = f"bytes {first}-{first + len(piece) - 1}/{len(content)}"
            self.send(206, piece, {"Content-Range": content_range} | (headers or {}))

    def wanted(self):
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), int(last)

    def send(self, status, body, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length != "unknown":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        for start in range(0, len(body), 4096):
            piece = body[start : start + 4096]
            self.owner.sent += len(piece)  # before the client can receive it
            self.wfile.write(piece)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other():
    server = Server()
    yield server
    server.close()


def refusal(url, kind=SourceError, **options) -> RushlightError:
    with pytest.raises(RushlightError) as caught:
        open_headers(url, **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.remedy
    return caught.value


def names(url):
    with open_headers(url) as checkpoint:
        return list(checkpoint)


# Requests


def test_only_one_range_is_requested_and_no_weights(server):
    server.files["/m.safetensors"] = SMALL
    tree = rushlight.inspect(f"{server.url}/m.safetensors")
    assert [(t.name, t.dtype, t.shape) for t in tree.tensors] == [("a", "F32", (50_000,)), ("b", "F16", (2, 3))]
    assert (tree.files, tree.metadata) == (("m.safetensors",), {"format": "pt"})
    assert [received[:2] for received in server.received] == [("/m.safetensors", f"bytes=0-{FIRST_BYTES - 1}")]
    assert server.sent == FIRST_BYTES < len(SMALL)


def test_a_long_header_takes_a_second_range_without_overlap(server):
    server.files["/m.safetensors"] = MANY
    assert len(names(f"{server.url}/m.safetensors")) == 2_000
    header_end = 8 + int.from_bytes(MANY[:8], "little")
    assert len(server.received) == 2
    assert server.requested_bytes() == server.sent == header_end


@pytest.mark.parametrize("content", [SMALL, MANY], ids=["small", "many"])
def test_a_server_without_ranges_gets_one_request(server, content):
    server.ranges = False
    server.files["/m.safetensors"] = content
    assert names(f"{server.url}/m.safetensors")
    assert len(server.received) == 1


def test_a_server_without_ranges_is_disconnected_after_the_header(server):
    def endless(handler):  # a file of a gigabyte according to the header
        info = {"a": {"dtype": "U8", "shape": [10**9 - 8 - 100], "data_offsets": [0, 10**9 - 108]}}
        start = (100).to_bytes(8, "little") + json.dumps(info).encode().ljust(100)
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        handler.wfile.write(start)
        while not server.closing.is_set():
            handler.wfile.write(bytes(65536))
            server.sent += 65536

    server.answer = endless
    assert names(f"{server.url}/m.safetensors") == ["a"]
    time.sleep(0.2)
    assert server.sent < 20_000_000  # the buffers between two sockets


def test_weights_cannot_be_read(server):
    server.files["/m.safetensors"] = SMALL
    with open_headers(f"{server.url}/m.safetensors") as checkpoint, pytest.raises(SourceError) as caught:
        checkpoint["a"].read()
    assert "download the checkpoint" in caught.value.remedy
    assert server.sent == FIRST_BYTES


def test_weights_are_not_loaded_from_a_url(server):
    with pytest.raises(SourceError, match="is a URL: weights are not loaded from URLs"):
        rushlight.load(f"{server.url}/m.safetensors")
    assert server.received == []


def test_the_shards_of_an_index_are_opened(server):
    shards = {f"m-0000{i}-of-00003.safetensors": {f"t{i}": np.zeros(40_000, np.float32)} for i in (1, 2, 3)}
    server.files |= {f"/x/{name}": save(tensors) for name, tensors in shards.items()}
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    server.files["/x/index.json"] = json.dumps({"weight_map": weight_map}).encode()
    assert names(f"{server.url}/x/index.json") == ["t1", "t2", "t3"]
    assert server.sent <= 3 * FIRST_BYTES + len(server.files["/x/index.json"])
    del server.files["/x/m-00002-of-00003.safetensors"]
    assert refusal(f"{server.url}/x/index.json").message == "the server answered 404"
    server.files["/x/m-00002-of-00003.safetensors"] = save({"other": np.zeros(1)})
    assert "does not match the files" in refusal(f"{server.url}/x/index.json", FormatError).message


@pytest.mark.parametrize("name", ["../x.safetensors", "https://evil.example/x.safetensors", "/x.safetensors", "x.bin"])
def test_an_index_cannot_name_files_outside_its_folder(server, name):
    server.files["/index.json"] = json.dumps({"weight_map": {"a": name}}).encode()
    assert "only .safetensors files in its own folder" in refusal(f"{server.url}/index.json", FormatError).remedy
    assert len(server.received) == 1


def test_a_local_model_does_not_import_network_libraries():
    code = "import sys, rushlight.checkpoint; print({'ssl', 'http.client', 'concurrent.futures'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# Redirects and credentials


def redirect(location, status=302):
    return lambda handler: handler.send(status, b"", {"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, other, status):
    other.files["/m.safetensors"] = SMALL
    server.answer = redirect(f"{other.url}/m.safetensors", status)
    assert names(f"{server.url}/start.safetensors") == ["a", "b"]


def test_the_token_is_sent_only_to_the_hub(server, other, monkeypatch):
    other.files["/m.safetensors"] = SMALL
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.answer = redirect(f"{other.url}/m.safetensors")
    names(f"{server.url}/m.safetensors")
    names(f"{other.url}/m.safetensors")
    assert [received[2] for received in server.received] == ["Bearer hf_secret"]
    assert [received[2] for received in other.received] == [None, None]


def test_a_redirect_back_to_the_hub_does_not_restore_the_token(server, other, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.files["/end.safetensors"] = SMALL
    server.answer = lambda handler: (
        handler.file(SMALL)
        if handler.path == "/end.safetensors"
        else handler.send(302, b"", {"Location": f"{other.url}/x"})
    )
    other.answer = redirect(f"{server.url}/end.safetensors")
    names(f"{server.url}/m.safetensors")
    assert [received[2] for received in server.received] == ["Bearer hf_secret", None]


def test_redirects_have_a_limit(server):
    server.answer = redirect("/again")
    assert "redirects more than 5 times" in refusal(f"{server.url}/m.safetensors").message
    assert len(server.received) == 6


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://192.0.2.1/x", "https://u:p@192.0.2.1/", "file:///x"])
def test_redirects_to_forbidden_urls_are_refused(server, location):
    server.answer = redirect(location)
    assert "redirects to a forbidden URL" in refusal(f"{server.url}/m.safetensors").message


def test_a_redirect_from_https_to_http_is_refused(server, monkeypatch):
    host, port = server.server.server_address
    monkeypatch.setattr(remote_http, "_connection", lambda parts, s: http.client.HTTPConnection(host, port, timeout=s))
    server.answer = redirect(f"{server.url}/m.safetensors")
    assert "from https to http" in refusal("https://example.org/m.safetensors").message
    assert len(server.received) == 1


def test_a_redirect_without_a_location_is_an_error(server):
    server.answer = lambda handler: handler.send(302, b"")
    assert "redirects without a Location" in refusal(f"{server.url}/m.safetensors").message


# Refusals


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://192.0.2.1/m.safetensors", "altered in transit"),
        ("http://example.org/m.safetensors", "altered in transit"),
        ("ftp://example.org/m.safetensors", "only https://"),
        ("https://user:secret@example.org/m.safetensors", "user name or password"),
        ("https:///m.safetensors", "only https://"),
        ("https://example.org:x/m.safetensors", "not a URL"),
        ("https://example.org/a b", "only https://"),
        ("https://huggingface.co/openai-community/gpt2", "the page of a model"),
    ],
)
def test_unsupported_urls_are_refused(url, message):
    assert message in refusal(url).message


def test_a_url_with_offline_or_a_revision_is_refused(server):
    assert "offline" in refusal(f"{server.url}/m.safetensors", offline=True).message
    assert "revision" in refusal(f"{server.url}/m.safetensors", revision="main").message
    assert server.received == []


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "sign-in"), (403, "sign-in"), (404, "URL"), (429, "wait"), (500, "later")]
)
def test_an_error_status_has_a_remedy(server, status, remedy):
    server.answer = lambda handler: handler.send(status, b"<html>")
    error = refusal(f"{server.url}/m.safetensors")
    assert error.message == f"the server answered {status}"
    assert remedy in error.remedy
    assert error.file == f"{server.url}/m.safetensors"


def test_an_empty_file_is_an_error(server):
    server.files["/m.safetensors"] = b""
    assert "empty" in refusal(f"{server.url}/m.safetensors", TruncatedError).message
    server.ranges = False
    assert "too short" in refusal(f"{server.url}/m.safetensors", TruncatedError).message


@pytest.mark.parametrize("ranges", [False, True])
def test_a_file_truncated_on_the_server_is_an_error(server, ranges):
    server.ranges = ranges
    server.files["/m.safetensors"] = SMALL[:-1]
    error = refusal(f"{server.url}/m.safetensors", TruncatedError)
    assert "bytes missing: 1" in error.message
    assert error.file == f"{server.url}/m.safetensors"


@pytest.mark.parametrize("status", [200, 206])
def test_a_broken_connection_is_an_error(server, status):
    content_range = {"Content-Range": f"bytes 0-{FIRST_BYTES - 1}/{len(SMALL)}"} if status == 206 else {}
    length = FIRST_BYTES if status == 206 else len(SMALL)
    server.answer = lambda handler: handler.send(status, SMALL[:40], content_range, length=length)
    assert "ended too early" in refusal(f"{server.url}/m.safetensors", TruncatedError).message


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "",
        "bytes 1-65536/200000",
        "bytes 0-10/200000",
        "bytes 0-65535/*",
        "bytes 0-65536/200000",
        "bytes 5-4/3",
        "items 0-65535/200000",
        "bytes 0-65535/99999999999999999999999",
    ],
)
def test_a_range_other_than_the_requested_one_is_an_error(server, content_range):
    headers = {} if content_range is None else {"Content-Range": content_range}
    server.answer = lambda handler: handler.send(206, SMALL[:FIRST_BYTES], headers)
    assert "another range" in refusal(f"{server.url}/m.safetensors").message


def test_a_file_that_changes_between_two_ranges_is_an_error(server):
    server.answer = lambda handler: handler.file(MANY, {"ETag": f'"{len(server.received)}"'})
    assert "changed while it was being read" in refusal(f"{server.url}/m.safetensors", TruncatedError).message


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_is_an_error(server, ranges, kind):
    server.ranges = ranges
    page = b"<!doctype html><html>" + b" " * 1000
    server.answer = lambda handler: handler.file(page, {"Content-Type": kind})
    assert "an HTML page" in refusal(f"{server.url}/m.safetensors", FormatError).message


def test_compressed_responses_are_refused(server):
    body = gzip.compress(SMALL)
    server.answer = lambda handler: handler.send(200, body, {"Content-Encoding": "gzip"})
    assert "compressed" in refusal(f"{server.url}/m.safetensors").message


def test_an_unknown_size_is_refused(server):
    server.answer = lambda handler: handler.send(200, SMALL, length="unknown")
    assert "does not state the size" in refusal(f"{server.url}/m.safetensors").message


@pytest.mark.parametrize("claimed", [10**8 + 1, 2**63, 2**64 - 1])
def test_an_oversized_header_is_not_fetched(server, claimed):
    server.files["/m.safetensors"] = claimed.to_bytes(8, "little") + b"{" + bytes(200_000)
    assert "out of range" in refusal(f"{server.url}/m.safetensors", FormatError).message
    assert server.sent <= FIRST_BYTES


def test_an_oversized_index_is_not_fetched(server):
    server.answer = lambda handler: handler.send(
        206, b"{" * FIRST_BYTES, {"Content-Range": f"bytes 0-{FIRST_BYTES - 1}/{10**12}"}
    )
    assert "too large" in refusal(f"{server.url}/index.json", FormatError).message
    assert len(server.received) == 1


@pytest.mark.parametrize("part", ["status", "header", "body"])
def test_slow_responses_are_aborted_at_a_deadline(server, monkeypatch, part):
    """The server sends single bytes, so that no socket timeout expires."""

    def drip(handler):
        if part != "status":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if part == "body":
            handler.wfile.write(b"Content-Length: 100000\r\n\r\n")
        while not server.closing.wait(0.05):
            handler.wfile.write(b"H")

    monkeypatch.setattr(
        remote_http.get_range, "__kwdefaults__", remote_http.get_range.__kwdefaults__ | {"deadline_s": 0.4}
    )
    server.answer = drip
    started = time.monotonic()
    assert "too slow" in refusal(f"{server.url}/m.safetensors").message
    assert 0.3 < time.monotonic() - started < 3


def test_an_unreachable_server_is_an_error(server):
    server.close()
    error = refusal(f"{server.url}/m.safetensors")
    assert "cannot be reached" in error.message


def test_a_response_that_is_not_http_is_an_error(server):
    server.answer = lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
    assert "not valid HTTP" in refusal(f"{server.url}/m.safetensors").message


# The hub


def test_only_headers_and_config_of_a_hub_model_are_fetched(hub):
    hub.repos["owner/name"] = {"model.safetensors": SMALL, "config.json": b"{}", "tokenizer.json": b"{}"}
    with open_headers("owner/name") as checkpoint:
        assert list(checkpoint) == ["a", "b"]
        assert checkpoint.is_remote
        assert checkpoint.sidecar("config.json").read_bytes() == b"{}"
        assert not (checkpoint.folder / "model.safetensors").exists()
    assert f"GET owner/name/resolve/{COMMIT}/model.safetensors" in hub.requests
    assert sorted(hub.bodies()) == ["config.json", "model.safetensors"]


def test_a_hub_model_in_the_cache_is_read_there(hub):
    hub.repos["owner/name"] = {"model.safetensors": SMALL, "config.json": b"{}"}
    rushlight.open_checkpoint("owner/name").close()
    hub.bodies()
    with open_headers("owner/name") as checkpoint:
        assert not checkpoint.is_remote
        assert checkpoint["b"].read().shape == (2, 3)
    assert hub.bodies() == []
    hub.requests.clear()
    open_headers("owner/name", offline=True).close()
    assert hub.requests == []


def test_a_hub_model_offline_and_not_in_the_cache_is_an_error(hub):
    hub.repos["owner/name"] = {"model.safetensors": SMALL}
    assert "the cache does not have the complete model" in refusal("owner/name", offline=True).message
    assert hub.requests == []


def test_whether_a_head_is_tied_is_left_open_without_a_config(hub, server, caplog):
    table, c_attn = np.zeros((3, 2), np.float32), np.zeros((2, 6), np.float32)
    weights = save(
        {"wte.weight": table, "wpe.weight": table, "h.0.attn.c_attn.weight": c_attn, "lm_head.weight": table}
    )
    hub.repos["owner/name"] = {"model.safetensors": weights, "config.json": b"{}"}
    marks = {tensor.name: tensor.mark for tensor in rushlight.inspect("owner/name").tensors}
    assert marks["lm_head.weight"] == "tied"
    server.files["/m.safetensors"] = weights
    marks = {tensor.name: tensor.mark for tensor in rushlight.inspect(f"{server.url}/m.safetensors").tensors}
    assert marks["lm_head.weight"] is None
    assert "lm_head.weight may be tied" in caplog.text
