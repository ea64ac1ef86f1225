"""Text files: read in full up to a limit; anything but UTF-8 text is refused."""

import os
import threading
import tracemalloc

import pytest

from rushlight.errors import RequestError, SourceError, TemplateError
from rushlight.files.text_file import read_bytes, read_text

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "template.jinja"


def test_a_file_is_read_unchanged(path):
    path.write_bytes("é\r\nb".encode())
    assert read_text(path, max_bytes=100) == "é\r\nb"
    assert read_bytes(path, max_bytes=5) == "é\r\nb".encode()


def test_a_file_above_the_limit_is_not_read(path):
    path.touch()
    os.truncate(path, 1 << 30)
    tracemalloc.start()
    with pytest.raises(TemplateError, match=r"too large \(expected at most 100 bytes, found 1,073,741,824\); check"):
        read_text(path, max_bytes=100, error=TemplateError)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_file_that_is_not_utf8_names_the_byte(path):
    path.write_bytes(b"ab\xff")
    with pytest.raises(TemplateError, match="not UTF-8") as caught:
        read_text(path, max_bytes=100, error=TemplateError)
    assert (caught.value.file, caught.value.offset) == (str(path), 2)


def test_another_kind_of_file_is_named(path):
    path.write_bytes(LFS_POINTER)
    with pytest.raises(TemplateError, match="not a text file but a Git LFS pointer") as caught:
        read_text(path, max_bytes=1000, error=TemplateError)
    assert "git lfs pull" in caught.value.remedy


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_only_a_regular_file_is_read(path, make):
    make(path)
    with pytest.raises(SourceError, match="not a regular file"):
        read_text(path, max_bytes=100)


def through_a_pipe(path, data):
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    try:
        return read_text(path, max_bytes=100, error=RequestError, allow_pipe=True)
    finally:
        writer.join()


def test_a_pipe_is_read_where_allowed(path):
    assert through_a_pipe(path, b"{}") == "{}"


def test_a_pipe_is_read_up_to_the_limit(path):
    with pytest.raises(RequestError, match=r"too large \(expected at most 100 bytes\)"):
        through_a_pipe(path, b" " * 101)
    with pytest.raises(RequestError, match=r"too large \(expected at most 100 bytes\)"):
        read_text("/dev/zero", max_bytes=100, error=RequestError, allow_pipe=True)


def test_a_folder_is_refused_where_a_pipe_is_allowed(path):
    path.mkdir()
    with pytest.raises(SourceError, match="not a regular file"):
        read_text(path, max_bytes=100, allow_pipe=True)
