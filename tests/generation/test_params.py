import dataclasses
import math
from fractions import Fraction

import pytest

from rushlight.errors import RequestError
from rushlight.generation import SamplingParams, SamplingSettings
from rushlight.generation.sampling.params import MAX_LOGIT_BIASES


def test_the_keywords_of_generate_are_the_fields():
    assert sorted(SamplingSettings.__annotations__) == sorted(
        field.name for field in dataclasses.fields(SamplingParams)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (-1, 1.5, 2.0, True, "3")],
        *[("temperature", value) for value in (math.nan, math.inf, -0.1, True, "1", 10**400, Fraction(10**400, 3))],
        *[("top_k", value) for value in (-1, 0.5, True)],
        *[("top_p", value) for value in (0, -0.5, 1.01, math.nan, True)],
        *[("min_p", value) for value in (-0.1, 1.1, math.nan)],
        *[("repetition_penalty", value) for value in (0, -1, math.inf, math.nan, 1e-31, 1e31)],
        *[(f"{name}_penalty", value) for name in ("presence", "frequency") for value in (math.nan, -1e31, "a")],
        *[("seed", value) for value in (-1, 2**64, 1.0, True)],
        *[("logit_bias", value) for value in ({-1: 1.0}, {3: math.nan}, {"3": 1.0}, [3], {True: 1.0}, {3: 1e31})],
        ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 0.0)),
        *[("stop_ids", value) for value in ([-1], [1.5], 3)],
        ("ignore_eos", 1),
    ],
)
def test_an_out_of_range_value_is_refused_naming_the_setting(name, value):
    with pytest.raises(RequestError, match=f"{name} is .*, expected "):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_tokens": 10**30},
        {"top_k": 10**30},
        {"temperature": 1.7e308},
        {"presence_penalty": -1e30, "frequency_penalty": 1e30, "repetition_penalty": 1e-30, "logit_bias": {3: 1e30}},
        {"top_p": 1},
        {"min_p": 1},
        {"seed": 2**64 - 1},
        {"logit_bias": {}},
        {"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES), -100)},
    ],
)
def test_range_limits_are_accepted(settings):
    SamplingParams(**settings)


def test_all_problems_are_reported_at_once():
    with pytest.raises(RequestError) as error:
        SamplingParams(temperature=-1, top_p=0, seed=-5)
    assert all(name in str(error.value) for name in ("temperature", "top_p", "seed"))


@pytest.mark.parametrize("settings", [{"logit_bias": {50: 1.0}}, {"stop_ids": [3, 50]}])
def test_token_ids_outside_the_vocabulary_are_refused(settings):
    with pytest.raises(RequestError, match=r"no such token: 50 .*0 to 49"):
        SamplingParams(**settings).check_vocabulary(50)
