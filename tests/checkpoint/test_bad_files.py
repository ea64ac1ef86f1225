"""Files that are not valid checkpoints."""

import errno
import gzip
import io
import os
import pickle
import signal
import socket
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from rushlight.checkpoint import open_checkpoint
from rushlight.errors import CheckpointError, FormatError, RushlightError, SourceError, TruncatedError
from rushlight.files.sniff import QUOTED_BYTES, sniff

WEIGHTS = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(5, "<f2")}


@contextmanager
def bounded(seconds=5, peak_bytes=1_000_000):
    """Fails if the body blocks or takes much memory."""

    def fail(*_):
        raise AssertionError("blocked")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak_bytes
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(path: Path) -> RushlightError:
    with bounded(), pytest.raises(RushlightError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# Files that are too short


@pytest.mark.parametrize("content", [b"", b"\0", b"abc", b"{}", b"\x02\0\0\0\0\0\0", bytes(8), bytes(9), bytes(40)])
def test_a_file_without_a_header_is_too_short(path, content):
    path.write_bytes(content)
    error = refusal(path)
    assert isinstance(error, TruncatedError if len(content) < 8 else FormatError)
    assert "too short" in error.message
    assert "download" in error.remedy


# Stated sizes that are too large


@pytest.mark.parametrize("n_bytes", [100_000_001, 2**63, 2**64 - 1])
def test_an_out_of_range_length_does_not_allocate(path, n_bytes):
    path.write_bytes(struct.pack("<Q", n_bytes) + b'{"a":1}')
    error = refusal(path)
    assert isinstance(error, FormatError)
    assert error.found == f"{n_bytes:,}"


def test_a_length_beyond_the_file_does_not_allocate(path):
    path.write_bytes(struct.pack("<Q", 99_999_999) + b'{"a":1}')
    error = refusal(path)
    assert isinstance(error, TruncatedError)
    assert (error.expected, error.found) == ("at least 100,000,007 bytes", "15")


def test_tensors_beyond_the_file_do_not_allocate(path):
    header = b'{"a":{"dtype":"U8","shape":[4611686018427387904],"data_offsets":[0,4611686018427387904]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    error = refusal(path)
    assert isinstance(error, TruncatedError)
    assert "4,611,686,018,427,387,904" in error.message


# Other formats, named in the error


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, WEIGHTS["a"])
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **WEIGHTS)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n"


@pytest.mark.parametrize(
    ("content", "kind", "remedy"),
    [
        (POINTER, "a Git LFS pointer; the real file has 548,105,171 bytes", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in", "an HTML page", "download it again"),
        (b"  \n<HTML>", "an HTML page", "download it again"),
        (b"\xef\xbb\xbf<html>x", "an HTML page", "download it again"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document", "download it again"),
        (b'{"error":"Invalid credentials in Authorization header"}', "JSON, such as", "download it again"),
        (b'\n{\n  "message": "Not Found"\n}\n', "JSON, such as a server's error message", "download it again"),
        (b'[{"error": "x"}]', "JSON, such as a server's error message", "download it again"),
        (b"Entry not found", "text, such as a server's error message", "download it again"),
        (b"GGUF\x03\0\0\0" + bytes(16), "GGUF", ".safetensors"),
        (npy(), ".npy", ".safetensors"),
        (npz(), ".npz", ".safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", ".safetensors"),
        (zipped(**{"readme.txt": b"hello"}), "a zip archive", "unpack"),
        (gzip.compress(save(WEIGHTS)), "gzip", "unpack"),
        (b"\xfd7zXZ\0" + bytes(64), "xz", "unpack"),
        (b"BZh91AY&SY" + bytes(64), "bzip2", "unpack"),
        (b"\x28\xb5\x2f\xfd" + b"\x24\x00\x01" * 9, "Zstandard", "unpack"),
        (tarred("model.safetensors"), "a tar archive", "unpack"),
        (bytes(512), "zeros", "download it again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_format_is_named(path, content, kind, remedy):
    path.write_bytes(content)
    error = refusal(path)
    assert isinstance(error, FormatError)
    assert error.message.startswith("not safetensors but ")
    assert kind in error.message
    assert remedy in error.remedy


@pytest.mark.parametrize(
    "entry", ["archive/data.pkl", "model/data.pkl", "pytorch_model/.format_version", "x/byteorder"]
)
def test_a_torch_checkpoint_is_named_and_not_unpickled(path, tmp_path, entry):
    canary = tmp_path / "unpickled"
    path.write_bytes(zipped(**{entry: pickle.dumps(Bomb(canary))}))
    error = refusal(path)
    assert "a PyTorch pickle" in error.message
    assert "never unpickled" in error.message
    assert "weights_only=True" in error.remedy
    assert error.remedy.endswith(f"{path.with_name('converted.safetensors')} {path}")
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_is_named_and_not_unpickled(path, tmp_path, protocol):
    canary = tmp_path / "unpickled"
    path.write_bytes(pickle.dumps(Bomb(canary), protocol))
    error = refusal(path)
    assert "a Python pickle" in error.message
    assert "torch.load" in error.remedy
    assert not canary.exists()


def test_an_error_message_does_not_quote_a_local_file(path):
    path.write_bytes(b'{"error": "secret' + b"x" * 10_000 + b'"}')
    assert "secret" not in str(refusal(path))


def test_an_error_message_quotes_the_start_of_a_server_response(path):
    start = b'{"error": "\x1b[31m' + b"x" * 500
    kind = sniff(start, path, quote=True)
    assert kind.name == rf"""JSON, such as a server's error message: {start[:QUOTED_BYTES].decode()}""".replace(
        "\x1b", r"\x1b"
    )


@pytest.mark.parametrize("n_bytes", [0x7B, 0x3C, 0x0280, 0x0480, 0x8B1F, 0x4B50])
def test_a_length_that_looks_like_another_format_is_a_length(path, n_bytes):
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(n_bytes)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["a"]


@pytest.mark.parametrize("content", [bytes(range(200, 256)), b"{" + bytes(7) + b"[]" * 70, b"\x80\x02" + bytes(70)])
def test_an_unknown_format_is_refused_without_naming_one(path, content):
    path.write_bytes(content)
    assert "not a safetensors file" in refusal(path).message


# Paths that are not regular files


def test_a_pipe_is_refused_and_does_not_block(path):
    os.mkfifo(path)
    error = refusal(path)
    assert isinstance(error, SourceError)
    assert "not a regular file" in error.message
    assert error.found == "a named pipe"


def test_a_socket_is_refused():
    with tempfile.TemporaryDirectory(prefix="s") as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder, "model.safetensors")
        server.bind(str(path))
        assert refusal(path).found == "a socket"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused(device):
    assert refusal(Path(device)).found == "a character device"


def test_a_folder_in_place_of_the_weights_is_refused(path):
    path.mkdir()
    (path / "model.safetensors").mkdir()
    assert refusal(path).found == "a folder"


def test_a_pipe_that_replaces_a_file_does_not_block(path, monkeypatch):
    path.write_bytes(save(WEIGHTS))
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    assert refusal(path).found == "a named pipe"


# Broken links and unreadable files


def test_a_loop_of_links_is_refused(path):
    path.symlink_to(path)
    assert "form a loop" in refusal(path).message


def test_a_broken_link_is_refused_and_its_target_named(path):
    path.symlink_to("../blobs/0123")
    error = refusal(path)
    assert "symbolic link is broken" in error.message
    assert error.found == "a link to ../blobs/0123"


def test_an_unreadable_file_is_refused(path, monkeypatch):
    path.write_bytes(save(WEIGHTS))

    def deny(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", deny)
    assert "cannot be opened: Permission denied" in refusal(path).message


# Changes to an open file


def written(path: Path, weights=WEIGHTS) -> Path:
    path.write_bytes(save(weights))
    os.utime(path, ns=(1, 1))
    return path


@pytest.mark.parametrize("left", [0, 8, 100, -1])
@pytest.mark.parametrize("time_restored", [False, True])
def test_a_file_truncated_while_open_is_an_error(path, left, time_restored):
    with open_checkpoint(written(path)) as checkpoint:
        os.truncate(path, left if left >= 0 else path.stat().st_size - 1)
        if time_restored:
            os.utime(path, ns=(1, 1))
        with pytest.raises(TruncatedError, match="changed while it was being read") as caught:
            checkpoint["b"].read()
    assert caught.value.file == str(path)
    assert "load it again" in caught.value.remedy


def test_a_file_rewritten_while_open_is_an_error(path):
    with open_checkpoint(written(path)) as checkpoint:
        checkpoint["a"].read()
        path.write_bytes(save({name: array + 1 for name, array in WEIGHTS.items()}))
        for read in (checkpoint["a"].read, checkpoint["b"].read):
            with pytest.raises(TruncatedError, match="the same size, rewritten"):
                read()


def test_a_file_that_grows_while_open_is_an_error(path):
    with open_checkpoint(written(path)) as checkpoint:
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(TruncatedError):
            checkpoint["a"].read()


def test_a_change_between_two_reads_of_one_tensor_is_an_error(path, monkeypatch):
    monkeypatch.setattr("rushlight.files.file._PIECE_BYTES", 8)
    preadv = os.preadv

    def read_and_change(fd, buffers, offset):
        n_read = preadv(fd, buffers, offset)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        return n_read

    with open_checkpoint(written(path)) as checkpoint:
        assert checkpoint["a"].read().tolist() == WEIGHTS["a"].tolist()
        monkeypatch.setattr(os, "preadv", read_and_change)
        with pytest.raises(TruncatedError):
            checkpoint["a"].read()


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_a_replaced_or_deleted_file_stays_readable(path, how):
    with open_checkpoint(written(path)) as checkpoint:
        if how == "replaced":
            written(path.with_name("new"), {name: array + 1 for name, array in WEIGHTS.items()}).replace(path)
        else:
            path.unlink()
        assert checkpoint["a"].read().tolist() == WEIGHTS["a"].tolist()
        assert checkpoint["b"].read().tolist() == WEIGHTS["b"].tolist()


def test_an_io_error_is_typed(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_checkpoint(written(path)) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match="cannot be read: Input/output error") as caught:
            checkpoint["a"].read()
    assert caught.value.offset > 8


def test_reading_after_close_is_an_error(path):
    with open_checkpoint(written(path)) as checkpoint:
        tensor = checkpoint["a"]
    with pytest.raises(ValueError, match="closed file"):
        tensor.read()


def test_a_refused_file_is_closed(path):
    path.write_bytes(POINTER)
    n_open = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        refusal(path)
    assert len(list(Path("/dev/fd").iterdir())) == n_open
