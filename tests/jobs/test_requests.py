"""Parsing the lines of a job."""

import json

import pytest

from rushlight.errors import RequestError
from rushlight.jobs import Line, RequestLines
from rushlight.jobs.lines import MAX_LINE_BYTES


def line(content, index=0):
    raw = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    return Line(index, raw, len(raw) + 1)


def test_a_line_overrides_the_settings_of_the_job():
    lines = RequestLines({"max_tokens": 7, "temperature": 0.5}, ("stop",), seed=3)
    request, name = lines.parse(line({"prompt": "é", "id": [1, {"a": None}], "temperature": 1, "seed": 9}))
    assert (request.prompt, request.stop, name) == ("é", ("stop",), [1, {"a": None}])
    assert request.settings == {"max_tokens": 7, "temperature": 1, "seed": 9}
    request, name = lines.parse(line({"prompt": [5, 6], "stop": ["a", "b"], "logit_bias": {"50": -1.5}, "seed": 0}))
    assert (request.prompt, request.stop, name) == ([5, 6], ["a", "b"], None)
    assert request.settings["logit_bias"] == {50: -1.5}


def test_the_seed_of_a_line_depends_on_its_index():
    def seed(index, job_seed=0, **members):
        request, _ = RequestLines({}, seed=job_seed).parse(line({"prompt": "x", **members}, index))
        return request.settings["seed"]

    seeds = {seed(index, job_seed) for index in range(50) for job_seed in (0, 1, 2**64 - 1)}
    assert len(seeds) == 150
    assert seed(7, 5) == seed(7, 5, temperature=1.0, seed=None)


def test_a_plain_text_line_is_a_prompt():
    lines = RequestLines({"max_tokens": 2}, plain_text=True)
    request, name = lines.parse(line(b'{"prompt": "no JSON', 4))
    assert (request.prompt, name) == ('{"prompt": "no JSON', None)
    with pytest.raises(RequestError, match="byte 1: the prompt is not UTF-8"):
        lines.parse(line(b"a\xff"))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"nonsense", "not JSON"),
        (b'{"prompt": "a"', "not JSON"),
        (b'{"prompt": "a"} {}', "not JSON"),
        (b'["prompt"]', "the top level is not a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "appears twice"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is not JSON"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b"{}", '"prompt" is missing'),
        (b'{"prompt": null}', '"prompt" is missing'),
        (b'{"prompt": {"text": "a"}}', "must be a string or a list of token ids"),
        (
            b'{"prompt": "a", "max_token": 3, "\\u001b[31m": 1}',
            r'unknown field "max_token", "\\x1b\[31m" \(expected prompt',
        ),
        (b'{"custom_id": "a", "body": {}}', 'unknown field "custom_id", "body"'),
        (b'{"prompt": "a", "stop": 3}', '"stop" must be'),
        (b'{"prompt": "a", "stop": ["a", null]}', '"stop" must be'),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias keys must be token ids"),
        (b'{"prompt": "' + b"a" * MAX_LINE_BYTES + b'"}', "the line is too long .*8,388,608"),
    ],
)
def test_invalid_requests(raw, problem):
    with pytest.raises(RequestError, match=problem):
        RequestLines({}).parse(line(raw))


def test_the_digest_depends_on_every_setting():
    digests = [
        lines.settings_digest(echo)
        for echo in (False, True)
        for lines in (
            RequestLines({"max_tokens": 3}, ("a",), 1),
            RequestLines({"max_tokens": 4}, ("a",), 1),
            RequestLines({"max_tokens": 3}, ("b",), 1),
            RequestLines({"max_tokens": 3}, ("a",), 2),
            RequestLines({"max_tokens": 3}, ("a",), 1, plain_text=True),
        )
    ]
    assert len(set(digests)) == 10
    assert all(len(digest) == 16 for digest in digests)


def test_the_nesting_of_an_id_is_limited():
    def nested(depth):
        return line(f'{{"prompt": "a", "id": {"[" * depth + "]" * depth}}}'.encode())

    _, name = RequestLines({}).parse(nested(64))
    assert json.dumps(name) == "[" * 64 + "]" * 64
    with pytest.raises(RequestError, match='"id" is nested too deeply'):
        RequestLines({}).parse(nested(65))
