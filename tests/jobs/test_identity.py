"""The identity of a job."""

import pytest

from rushlight.errors import SourceError
from rushlight.jobs import RequestLines, identity
from rushlight.jobs.identity import changes, job_identity


def test_the_names_of_an_identity(model, tmp_path):
    lines = RequestLines({"max_tokens": 3})
    found = job_identity(model, lines, echo=False)
    assert list(found) == ["settings", "device", "dtype", "arithmetic", "weights", "config", "tokenizer"]
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

    whole = bytes(range(250)) * 14
    others = [
        digest(whole[:-1] + b"\0"),
        digest(b"\1" + whole[1:]),
        digest(whole[:2999] + b"\0" + whole[3000:]),
        digest(whole[:1000] + whole[2000:3000] + whole[1000:2000] + b"x" + whole[3001:]),
        digest(whole[1000:2000] + b"x" + whole[1:1000] + whole[2000:]),
        digest(whole[:-1]),
        digest(whole[:1000], whole[1000:]),
        digest(whole[1000:], whole[:1000]),
        digest(),
    ]
    assert digest(whole) == digest(whole)
    assert len({digest(whole), *others}) == len(others) + 1


def test_missing_weights(model, monkeypatch, tmp_path):
    monkeypatch.setattr(model, "files", (tmp_path / "gone.safetensors",))
    with pytest.raises(SourceError, match=r"gone.safetensors: no such file"):
        job_identity(model, RequestLines({}), echo=False)
