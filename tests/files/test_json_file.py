"""JSON files next to a checkpoint."""

import os
import tracemalloc

import pytest

from rushlight.checkpoint import read_json_object
from rushlight.errors import ConfigError, FormatError, SourceError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.json"


def test_a_file_is_strict_json(path):
    path.write_text('{"n": [1]}')
    assert read_json_object(path, max_bytes=1000) == {"n": [1]}
    path.write_text('{"n": NaN}')
    with pytest.raises(ConfigError, match="NaN is not JSON") as caught:
        read_json_object(path, max_bytes=1000, error=ConfigError)
    assert caught.value.file == str(path)


def test_a_file_above_the_limit_is_not_read(path):
    path.touch()
    os.truncate(path, 1 << 30)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="too large") as caught:
        read_json_object(path, max_bytes=1_000_000, error=ConfigError)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert caught.value.expected == "at most 1,000,000 bytes"
    assert caught.value.found == "1,073,741,824"


def test_the_limit_itself_is_allowed(path):
    path.write_text("{}".ljust(100))
    assert read_json_object(path, max_bytes=100) == {}
    with pytest.raises(FormatError, match="too large"):
        read_json_object(path, max_bytes=99)


def test_only_a_regular_file_is_read_without_blocking(path, tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_json_object(path, max_bytes=100)
    with pytest.raises(SourceError, match="not a regular file"):
        read_json_object(tmp_path, max_bytes=100)
    os.mkfifo(path)
    with pytest.raises(SourceError, match="not a regular file"):
        read_json_object(path, max_bytes=100)
