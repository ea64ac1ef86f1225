"""JSON from strangers. Row 24 of BAD_INPUTS."""

import os
import time
import tracemalloc

import pytest

from rushlight.checkpoint import read_json_object
from rushlight.errors import ConfigError, FormatError, SourceError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.json"


def refusal(path, content: str | bytes, max_bytes=1_000_000) -> ConfigError:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        read_json_object(path, max_bytes=max_bytes, error=ConfigError)
    assert caught.value.file == str(path)
    return caught.value


def test_an_object_is_read(path):
    path.write_text(
        '{"n": 1, "x": -0.5e-3, "s": "\\ud83d\\ude00é", "l": [true, null, {}], "big": 100000000000000000000}'
    )
    assert read_json_object(path, max_bytes=1000) == {
        "n": 1,
        "x": -0.0005,
        "s": "😀é",
        "l": [True, None, {}],
        "big": 10**20,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON: expecting value in line 1, column 1"),
        ("{", "not JSON"),
        ('{"a": 1,}', "not JSON"),
        ('{\n "a": 1}\nx', "not JSON: extra data in line 3, column 1"),
        ("{'a': 1}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON: unexpected UTF-8 BOM"),
        ('{"a": "\n"}', "not JSON: invalid control character"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": [Infinity]}', "Infinity is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "the number 1e999 is beyond the range of a double"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5,000 characters"),
        ('{"a": 0.' + "9" * 5000 + "}", "a number of 5,002 characters"),
        ('{"n_head": 12, "n_layer": 12, "n_head": 1}', 'the key "n_head" stands twice'),
        ('{"a": {"b": 1, "b": 1}}', 'the key "b" stands twice'),
        ('{"a\\u001b": 1, "a\\u001b": 1}', r'the key "a\x1b" stands twice'),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\uDC00": 1}', "half of a surrogate pair"),
        ("[]", "the top level is not a JSON object"),
        ("null", "the top level is not a JSON object"),
        ("true", "the top level is not a JSON object"),
        ('"x"', "the top level is not a JSON object"),
        ("12", "the top level is not a JSON object"),
    ],
)
def test_what_is_not_strict_json_is_refused(path, content, message):
    assert message in refusal(path, content).message


def test_what_is_not_utf8_is_refused_at_its_byte(path):
    error = refusal(path, b'{"a": "\xff"}')
    assert error.message == "not UTF-8"
    assert error.offset == 7


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
def test_deep_nesting_is_refused(path, opening):
    started = time.process_time()
    assert refusal(path, opening * 100_000).message == "nested too deeply"
    assert time.process_time() - started < 1


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


def test_the_error_is_a_format_error_unless_told_otherwise(path):
    path.write_text("[]")
    with pytest.raises(FormatError):
        read_json_object(path, max_bytes=100)


def test_what_is_not_a_file_is_refused_without_blocking(path, tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_json_object(path, max_bytes=100)
    with pytest.raises(SourceError, match="not a regular file"):
        read_json_object(tmp_path, max_bytes=100)
    os.mkfifo(path)
    with pytest.raises(SourceError, match="not a regular file"):
        read_json_object(path, max_bytes=100)
