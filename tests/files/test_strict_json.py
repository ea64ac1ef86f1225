"""Untrusted JSON."""

import time

import pytest

from rushlight.errors import ConfigError, FormatError
from rushlight.files.strict_json import parse_json_object


def refusal(content: str | bytes) -> ConfigError:
    raw = content.encode() if isinstance(content, str) else content
    with pytest.raises(ConfigError) as caught:
        parse_json_object(raw, file="config.json", error=ConfigError, remedy="write it again")
    assert (caught.value.file, caught.value.remedy) == ("config.json", "write it again")
    return caught.value


def test_an_object_is_read():
    raw = '{"n": 1, "x": -0.5e-3, "s": "\\ud83d\\ude00é", "l": [true, null, {}], "big": 100000000000000000000}'
    assert parse_json_object(raw.encode(), file="config.json") == {
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
        ('{"a": ' + "9" * 5000 + "}", "an integer of thousands of digits"),
        ('{"n_head": 12, "n_layer": 12, "n_head": 1}', 'the key "n_head" appears twice'),
        ('{"a": {"b": 1, "b": 1}}', 'the key "b" appears twice'),
        ('{"a\\u001b": 1, "a\\u001b": 1}', r'the key "a\x1b" appears twice'),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\uDC00": 1}', "half of a surrogate pair"),
        ("[]", "the top level is not a JSON object"),
        ("null", "the top level is not a JSON object"),
        ("true", "the top level is not a JSON object"),
        ('"x"', "the top level is not a JSON object"),
        ("12", "the top level is not a JSON object"),
    ],
)
def test_json_that_is_not_strict_is_refused(content, message):
    assert message in refusal(content).message


def test_invalid_utf8_is_refused_with_its_offset():
    error = refusal(b'{"a": "\xff"}')
    assert error.message == "not UTF-8"
    assert error.offset == 7


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
def test_deep_nesting_is_refused(opening):
    started = time.process_time()
    assert refusal(opening * 100_000).message == "nested too deeply"
    assert time.process_time() - started < 1


def test_the_error_is_a_format_error_by_default():
    with pytest.raises(FormatError):
        parse_json_object(b"[]", file="config.json")


def test_an_integer_too_long_for_python_is_refused_fast():
    started = time.process_time()
    refusal('{"a": ' + "9" * 10_000_000 + "}")
    assert time.process_time() - started < 1
