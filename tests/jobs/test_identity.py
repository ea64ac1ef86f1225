"""The identity of a job."""

import pytest

from rushlight.errors import SourceError
from rushlight.jobs import RequestLines, identity
from rushlight.jobs.identity import changes, job_identity


def test_the_keys_of_an_identity(model, tmp_path):
    lines = RequestLines({"max_tokens": 3})
    found = job_identity(model, lines, echo=False)
    assert list(found) == ["settings", "device", "dtype", "arithmetic", "weights", "config", "tokenizer", "prefix"]
    assert (found["device"], found["dtype"], found["arithmetic"]) == ("cpu", "f16", "exact")
    assert found == job_identity(model, lines, echo=False)
    port = tmp_path / "port.py"
    port.write_text("ARCHITECTURE = None\n")
    ported = job_identity(model, lines, echo=True, port=port)
    assert changes(found, ported) == ["settings", "port"]
    assert changes(ported, found) == ["settings", "port"]
    assert changes(found, found) == []


def test_the_digest_depends_on_every_byte_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_PIECE_BYTES", 1000)

    def digest(*contents):
        paths = [tmp_path / f"{i}.safetensors" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return identity._weights_digest(paths)

    data = bytes(range(250)) * 14
    others = [
        digest(data[:-1] + b"\0"),
        digest(b"\1" + data[1:]),
        digest(data[:2999] + b"\0" + data[3000:]),
        digest(data[:1000] + data[2000:3000] + data[1000:2000] + b"x" + data[3001:]),
        digest(data[1000:2000] + b"x" + data[1:1000] + data[2000:]),
        digest(data[:-1]),
        digest(data[:1000], data[1000:]),
        digest(data[1000:], data[:1000]),
        digest(),
    ]
    assert digest(data) == digest(data)
    assert len({digest(data), *others}) == len(others) + 1


def test_missing_weights(model, monkeypatch, tmp_path):
    monkeypatch.setattr(model, "files", (tmp_path / "gone.safetensors",))
    with pytest.raises(SourceError, match=r"gone.safetensors: no such file"):
        job_identity(model, RequestLines({}), echo=False)
