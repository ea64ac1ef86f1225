"""A fake Hugging Face Hub on 127.0.0.1, with the endpoints that huggingface_hub uses and ways to fail."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Serves `repos`, {"owner/name": {"file": content}}, and records the requests.

    Safetensors are "LFS" files, as on the real hub: hashed with SHA-256, all others as git hashes them.

    Attributes:
        status, error_code: the status of every response, and the error code of the hub in its header.
        cuts: the number of times that a body of more than 100 bytes is cut after 100 and the connection closed.
        stall: bodies of more than 100 bytes stop after 100 until the hub closes.
        damaged: files whose last byte is changed in transit.
        silent: no request is answered until the hub closes.
        commit: the commit of every repository's main branch.
        ranges: the Range headers of the requests that had one.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int | None = None
    error_code: str | None = None
    cuts: int = 0
    stall: bool = False
    damaged: set[str] = field(default_factory=set)
    silent: bool = False
    commit: str = COMMIT
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.closing = threading.Event()
        self.stalled = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        """Shuts the hub down, and closes this process's connections to it."""
        from huggingface_hub import close_session

        if not self.closing.is_set():
            self.closing.set()
            close_session()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def bodies(self) -> list[str]:
        """Returns the files whose bodies were requested, in order, and clears `requests`."""
        downloads = [request for request in self.requests if request.startswith("GET") and "/resolve/" in request]
        self.requests.clear()
        return [request.rpartition("/")[2] for request in downloads]


def etag(name: str, content: bytes) -> str:
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait for the acknowledgement of its header, 40 ms
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")  # before the client can continue
        if self.hub.silent:
            self.hub.closing.wait(60)
        match path.split("/"):
            case _ if self.hub.status is not None:
                self.send(self.hub.status, b'{"error": "refused"}', {"X-Error-Code": self.hub.error_code or ""})
            case ["api", "models", owner, name, *rest]:
                self.api(f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, *file]:
                self.file(f"{owner}/{name}", revision, "/".join(file))
            case _:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def api(self, repo, rest):
        files = self.hub.repos.get(repo)
        if files is None:
            self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif len(rest) == 2 and rest[1] not in ("main", self.hub.commit):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest and rest[0] == "tree":
            self.send(200, json.dumps([tree_entry(*file) for file in files.items()]).encode())
        else:
            siblings = [{"rfilename": name} for name in files]
            self.send(200, json.dumps({"id": repo, "sha": self.hub.commit, "siblings": siblings}).encode())

    def file(self, repo, revision, name):
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None or revision not in ("main", self.hub.commit):
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if name in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status = 200
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            piece = content[int(start) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(piece) - 1}/{len(content)}"
            content, status = piece, 206
        self.send(status, content, headers)

    def send(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(body) > 100 and "/resolve/" in self.path and (self.hub.cuts or self.hub.stall):
            self.wfile.write(body[:100])
            self.close_connection = True
            if self.hub.stall:
                self.hub.stalled.set()
                self.hub.closing.wait(60)
            else:
                self.hub.cuts -= 1
            return
        self.wfile.write(body)


def tree_entry(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": etag("", content)}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": etag(name, content), "size": len(content), "pointerSize": 130}
    return entry


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    """An empty hub for the huggingface_hub of this process, with an empty cache in tmp_path / "hub"."""
    from huggingface_hub import constants, hf_api, utils

    fake = FakeHub()
    # huggingface_hub reads the environment when it is imported, which another test may have done already.
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", fake.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    utils.disable_progress_bars()
    yield fake
    fake.close()
    utils.enable_progress_bars()
