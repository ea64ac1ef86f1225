"""Schemas and patterns of a few bytes that would take minutes to compile, and settings that are not Unicode."""

import json
import re
import subprocess
import sys
import time

import pytest

import rushlight
from rushlight.errors import GenerationError, RequestError
from rushlight.text.schema_cost import check_cost


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


@pytest.mark.parametrize(
    ("schema", "place", "found"),
    [
        ('{"type":"integer","multipleOf":99999989}', "#/multipleOf", "99,999,989"),
        ({"multipleOf": 99999.989}, "#/multipleOf", "99,999,989"),
        ({"multipleOf": -99999989}, "#/multipleOf", "99,999,989"),
        ({"multipleOf": 2**30}, "#/multipleOf", "1,073,741,824"),
        ({"properties": {"a": {"multipleOf": 100_001}}}, "#/properties/a/multipleOf", "100,001"),
        ({"items": [{"multipleOf": 100_001}]}, "#/items/0/multipleOf", "100,001"),
        ({"$defs": {"a": {"multipleOf": 3131}}, "multipleOf": 3170}, "#/$defs/a/multipleOf", "9,925,270"),
        ({"allOf": [{"multipleOf": 0.313}, {"multipleOf": 3.17}]}, None, None),
        ({"allOf": [{"multipleOf": 0.3133}, {"multipleOf": 3.17}]}, "#/allOf/0/multipleOf", "993,161"),
        ({"multipleOf": 5e-324}, None, None),
        ({"multipleOf": 1.2345678901234567e300}, "#/multipleOf", "a number of more than 30 digits"),
        ({"multipleOf": 100_000}, None, None),
        ({"multipleOf": 0.01, "allOf": [{"multipleOf": 15}, {"multipleOf": 7}]}, None, None),
        ({"multipleOf": 1_000_000_000}, None, None),
        ({"multipleOf": True, "properties": {"multipleOf": {"multipleOf": "9999999999"}}}, None, None),
    ],
)
def test_the_cost_of_multiples_is_bounded(schema, place, found):
    value = json.loads(schema) if isinstance(schema, str) else schema
    if place is None:
        check_cost(value)
        return
    with pytest.raises(RequestError) as error:
        check_cost(value)
    assert f"takes too long to compile because of {place} (expected at most 100,000" in str(error.value)
    assert str(error.value).endswith(f", found {found})")


def test_an_affordable_multiple_is_accepted(model):
    result = model.generate("The", json_schema={"type": "integer", "multipleOf": 9973, "minimum": 1}, max_tokens=40)
    assert re.fullmatch(r"\d+", result.text)
    if result.finish_reason == "stop":
        assert int(result.text) % 9973 == 0


def test_an_expensive_multiple_is_refused_immediately(model):
    start = time.process_time()
    with pytest.raises(RequestError, match="multipleOf"):
        model.generate("The", json_schema='{"type":"integer","multipleOf":99999989}')
    assert time.process_time() - start < 5  # once took minutes


def optional(n, first=0):
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(first, first + n)}}


def test_optional_properties_work_up_to_their_limit(model):
    found = model.generate("The", json_schema=optional(1000), max_tokens=8)
    assert found.text.startswith("{")
    with pytest.raises(RequestError, match=r"#/properties \(expected at most 2,000 properties .*, found 8,000\)"):
        model.generate("The", json_schema=optional(8000))
    together = {"allOf": [optional(1000), optional(1000, 1000), optional(1000, 2000)]}
    with pytest.raises(RequestError, match=r"#/allOf/\d/properties \(expected at most 2,000 properties"):
        model.generate("The", json_schema=together)


def test_pattern_properties_work_up_to_their_limit(model):
    def patterns(n, first=0):
        return {"type": "object", "patternProperties": {f"^p{i}$": {} for i in range(first, first + n)}}

    assert model.generate("The", json_schema=patterns(20), max_tokens=8).text.startswith("{")
    bound = "expected at most 100 patternProperties in the schema"
    with pytest.raises(RequestError, match=rf"#/patternProperties \({bound}, found 1,000\)"):
        model.generate("The", json_schema=patterns(1000))  # once took minutes
    with pytest.raises(RequestError, match=rf"#/allOf/\d/patternProperties \({bound}"):
        model.generate("The", json_schema={"allOf": [patterns(60), patterns(60, 60)]})


def test_a_schema_that_needs_a_forbidden_token_is_an_error(make_gpt2):
    """The error names the schema instead of the logits, and the other sequences continue."""
    files = {"generation_config.json": {"suppress_tokens": [ord("{")], "eos_token_id": 256}}
    model = rushlight.load(make_gpt2(files=files))
    schema = rushlight.Request("Hi", json_schema={"type": "object"})
    results = dict(model.generate_many([schema, rushlight.Request("Hi", max_tokens=4)]))
    assert isinstance(results[0], GenerationError)
    assert str(results[0]).startswith("no valid token at position 2; check json_schema or regex")
    assert len(results[1].ids) == 4


def test_generating_from_a_forbidden_vocabulary_is_an_error(make_gpt2):
    """The model's author forbids every token with text; the rest of the table is padding."""
    files = {"generation_config.json": {"suppress_tokens": [*range(257)]}}
    model = rushlight.load(make_gpt2(vocab_size=300, files=files))
    for ask in (model.generate, model.beam_search):
        with pytest.raises(GenerationError, match="no valid token at position 2"):
            ask("Hi", max_tokens=3)


def test_the_length_of_a_schema_passed_as_a_mapping_is_bounded(model):
    with pytest.raises(RequestError, match=r"json_schema is too long .*262,144 characters"):
        model.generate("The", json_schema={"description": "a" * 2**18})
    assert model.generate("The", json_schema={"description": "é" * 200_000, "const": 1}, max_tokens=4).text == "1"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"regex": "\ud800"}, r"regex is '\\ud800', expected a pattern"),
        ({"json_schema": '{"const": "\ud800"}'}, "json_schema is .*, expected a JSON schema"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema cannot be used"),
        ({"stop": "\ud800"}, "a stop string contains half of a surrogate pair"),
    ],
)
def test_settings_that_are_not_unicode_are_an_error(model, settings, problem):
    with pytest.raises(RequestError, match=problem):
        model.generate("a", max_tokens=2, **settings)


@pytest.mark.parametrize(("flag", "problem"), [("--regex", rb"'\udcff'"), ("--stop", b"half of a surrogate pair")])
def test_arguments_that_are_not_utf8_exit_with_2(flag, problem):
    command = [sys.executable, "-m", "rushlight", "generate", "-p", "a", "-n", "2", flag, b"\xff"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert problem in done.stderr.splitlines()[-1]


def test_chat_variables_and_files_that_are_not_json_or_paths(model, tmp_path):
    with (
        rushlight.Chat(model, template="{{ x }}", variables={"x": object()}) as chat,
        pytest.raises(RequestError, match="a variable of the chat template is not a JSON value"),
    ):
        chat.send("a")
    with pytest.raises(RequestError, match="not a path"):
        rushlight.Chat(model).save(tmp_path / "\ud800")
