"""Text constrained to a JSON schema or a pattern, from a model that would otherwise write something else."""

import json
import re
import sys

import pytest

import rushlight
from rushlight.errors import GenerationError, LibraryError, RequestError, TokenizerError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAMPLED = {"temperature": 1.2, "seed": 4, "max_tokens": 120}


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
@pytest.mark.parametrize("settings", [{"max_tokens": 120, "repetition_penalty": 1.2}, SAMPLED])
def test_json_that_a_schema_accepts(model, schema, settings):
    result = model.generate("My name is", json_schema=schema, **settings)
    value = json.loads(result.text)
    assert value.keys() == {"name", "age"}
    assert isinstance(value["name"], str)
    assert isinstance(value["age"], int)
    assert value["age"] >= 0
    assert result.finish_reason == "stop"


def test_text_that_a_pattern_matches(model):
    pattern = r"(yes|no), (the|a) [a-z]{3,8}\."
    result = model.generate("He said", regex=pattern, n=4, **SAMPLED)
    texts = [str(text) for text in result]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 1
    again = model.generate("He said", regex=pattern, ignore_eos=True, **SAMPLED)
    assert (again.text, again.finish_reason) == (texts[0], "stop")


def test_a_truncated_text_is_a_prefix_of_a_match(model):
    result = model.generate("He said", regex="(ab)*c", max_tokens=3)
    assert re.fullmatch("(ab)*a?c?", result.text)


def test_speculation_does_not_change_constrained_output(model):
    plain, speculated = (
        model.generate("He said", regex="(la|lo){40}", speculate=speculate, **SAMPLED) for speculate in (False, True)
    )
    assert (plain.ids, plain.text) == (speculated.ids, speculated.text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "[a-"}, "regex cannot be used: unclosed character class"),
        ({"regex": "(?=a)b"}, "regex cannot be used: .*look-around"),
        ({"json_schema": {"type": "objct"}}, "json_schema cannot be used: Invalid type: objct"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema is not JSON"),
        ({"json_schema": '{"maximum": NaN}'}, "json_schema is not JSON"),
        ({"json_schema": '{"maximum": 1e400}'}, "json_schema is not JSON"),
        ({"json_schema": {"maximum": 10**400}}, "json_schema cannot be used: number out of range"),
        ({"json_schema": "true"}, "json_schema cannot be used: Expecting object schema"),
        ({"json_schema": 3}, "json_schema is 3"),
        ({"regex": "a" * (2**18 + 1)}, "at most 262,144 Unicode characters"),
        ({"regex": "a", "json_schema": {}}, "both set"),
    ],
)
def test_an_invalid_grammar_is_refused(model, settings, message):
    with pytest.raises(RequestError, match=message):
        model.stream("He said", **settings)


def test_a_missing_library_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LibraryError, match=r"pip install 'rushlight\[constrain\]'"):
        rushlight.load().generate("He said", regex="a")


def test_a_constraint_needs_a_tokenizer_and_an_end_of_text_token():
    model = rushlight.load()
    model.eos_ids = ()
    with pytest.raises(RequestError, match="end-of-text token"):
        model.generate("He said", regex="a")
    model.tokenizer = None
    with pytest.raises(TokenizerError, match="need a tokenizer"):
        model.generate([1], regex="a")


def test_a_token_that_the_grammar_does_not_allow_is_an_error(model):
    constraint = model._inputs.constraint(
        rushlight.generation.SamplingParams(regex="yes"), model._prompts, model.eos_ids
    )
    with pytest.raises(GenerationError, match="the grammar cannot be followed"):
        constraint.accept_token(model.tokenizer.encode("no")[0])
