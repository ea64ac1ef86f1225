"""Rotary frequencies equal PyTorch's, and problems of the settings are reported by their paths."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rushlight.errors import ConfigError
from rushlight.models import ARCHITECTURES, Rope

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "rope.json").read_text())
SIZES = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 52,
}


def read(head_dim=10, positions=600, model_type="llama", **keys):
    sizes = SIZES | {"model_type": model_type, "head_dim": head_dim, "max_position_embeddings": positions}
    sizes["num_key_value_heads"] = 4
    return ARCHITECTURES[model_type].config_type.from_json(sizes | keys).rope_parameters


def ulps(found, expected):
    """The distance of positive float32 numbers in units in the last place."""
    return np.abs(found.view(np.int32) - np.array(expected, np.float32).view(np.int32))


@pytest.fixture(scope="module")
def recorded_ropes():
    ropes = []
    for row in RECORDED:
        settings = row["rope_parameters"]
        model_type = "phi3" if "partial_rotary_factor" in settings else "llama"
        ropes.append((row, read(row["head_dim"], row["positions"], model_type, rope_parameters=settings)))
    return ropes


def test_frequencies_equal_those_of_pytorch(recorded_ropes):
    distances = []
    for row, rope in recorded_ropes:
        frequencies = rope.frequencies(4096)
        assert frequencies.dtype == np.float32
        assert rope.n_channels == 2 * len(frequencies)
        distances += [ulps(frequencies, row["frequencies"]), ulps(rope.frequencies(row["positions"]), row["long"])]
    distances = np.concatenate(distances)
    assert (distances > 0).mean() <= 0.01
    assert distances.max() <= 2  # PyTorch's powers are not rounded exactly; the reciprocal may double the difference


def test_scales_equal_those_of_transformers(recorded_ropes):
    for row, rope in recorded_ropes:
        assert rope.scale == row["scale"]


def test_every_kind_is_recorded(recorded_ropes):
    assert {rope.kind for _, rope in recorded_ropes} == {"default", "linear", "llama3", "yarn", "longrope"}
    assert len({(rope.theta, rope.n_channels) for _, rope in recorded_ropes if rope.kind == "default"}) == 10


def test_float32_powers_would_not_equal_those_of_pytorch():
    row = RECORDED[6]
    r = row["head_dim"]
    powers = np.float32(row["rope_parameters"]["rope_theta"]) ** (np.arange(0, r, 2, dtype=np.float32) / np.float32(r))
    exact = row["rope_parameters"]["rope_theta"] ** (np.arange(0, r, 2) / r)
    assert (ulps(np.float32(1) / powers, row["frequencies"]) > 0).mean() > 0.02
    assert (ulps((1 / exact).astype(np.float32), row["frequencies"]) > 0).mean() > 0.02


def test_longrope_selects_its_list_by_the_context_length():
    lists = {"short_factor": [1.0] * 5, "long_factor": [2.0] * 5, "original_max_position_embeddings": 150}
    rope = read(rope_parameters={"rope_type": "longrope", **lists})
    assert np.array_equal(rope.frequencies(150), 2 * rope.frequencies(151))
    assert (rope.default_context_length(600), rope.default_context_length(100)) == (150, 100)
    assert Rope(1e4, 10).default_context_length(600) == 600


def test_the_original_context_of_phi3_is_4096_positions_by_default():
    lists = {"short_factor": [1.0] * 5, "long_factor": [2.0] * 5}
    rope = read(model_type="phi3", positions=8192, rope_scaling={"type": "longrope", **lists})
    assert rope.default_context_length(8192) == 4096
    assert rope.scale > 1


def rope_scaling(**settings):
    return {"rope_scaling": settings}


LISTS = {"short_factor": [1.0] * 5, "long_factor": [1.0] * 5}


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        (rope_scaling(type="magic", factor=2.0), [r"rope_scaling\.type is 'magic', expected one of default, .*yarn"]),
        (rope_scaling(rope_type=7), [r"rope_scaling\.rope_type is 7, expected one of"]),
        (rope_scaling(type="linear"), [r"rope_scaling\.factor is missing, expected a number"]),
        (rope_scaling(type="linear", factor=0), [r"rope_scaling\.factor is 0, expected a number from 1e-30"]),
        (rope_scaling(type="linear", factor=2.0, ramp=3), [r"rope_scaling\.ramp is 3: an unknown key"]),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": "8"}},
            [
                r"rope_parameters\.factor is '8', expected a number",
                r"rope_parameters\.low_freq_factor is missing",
                r"rope_parameters\.high_freq_factor is missing",
            ],
        ),
        (
            rope_scaling(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0),
            [r"rope_scaling\.low_freq_factor is 4.* expected a number below .*high_freq_factor, 4"],
        ),
        (rope_scaling(type="longrope"), [r"rope_scaling\.short_factor is missing", r"long_factor is missing"]),
        (
            rope_scaling(type="longrope", **LISTS | {"long_factor": [1.0] * 4}),
            [r"rope_scaling\.long_factor is a list of 4, expected a list of 5 numbers"],
        ),
        (
            rope_scaling(type="longrope", **LISTS | {"short_factor": [1.0, 1.0, 0, 1.0, 1.0]}),
            [r"rope_scaling\.short_factor is \[1\.0, 1\.0, 0, 1\.0, 1\.0\], expected a list of 5 numbers from 1e-30"],
        ),
        ({"rope_scaling": "linear"}, [r"rope_scaling is 'linear', expected an object"]),
        ({"rope_theta": 0}, [r"rope_theta is 0, expected a number"]),
        ({"rope_parameters": {"rope_theta": -1.0}}, [r"rope_parameters\.rope_theta is -1.0, expected a number"]),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            [r"rope_parameters and rope_scaling are both set, expected one of them"],
        ),
        ({"partial_rotary_factor": 0.5}, [r"partial_rotary_factor is 0.5, which rushlight does not support"]),
        (
            {"model_type": "gpt_neox", "rotary_emb_base": 1e4, "rope_theta": 5e3},
            [r"rope_theta is 5000 and rotary_emb_base is 10000, expected equal values"],
        ),
        (
            {"model_type": "gpt_neox", "rotary_pct": 0.5, "partial_rotary_factor": 0.25},
            [r"partial_rotary_factor is 0.25 and rotary_pct is 0.5, expected equal values"],
        ),
        (
            {"model_type": "stablelm", "partial_rotary_factor": 1.5},
            [r"partial_rotary_factor is 1.5, expected a share of the 10 channels"],
        ),
        (
            {"model_type": "stablelm", "rope_parameters": {"partial_rotary_factor": 0.01}},
            [r"rope_parameters\.partial_rotary_factor is 0.01, expected a share of the 10 channels"],
        ),
    ],
)
def test_problems_are_reported_together_with_path_found_and_expected(keys, problems):
    with pytest.raises(ConfigError) as caught:
        read(**keys)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert re.search(problem, line), line


def test_dynamic_scaling_is_the_default_within_the_context():
    assert read(rope_scaling={"type": "dynamic", "factor": 2.0}) == read()


def test_only_phi3_calls_longrope_yarn():
    lists = {"short_factor": [1.0] * 5, "long_factor": [2.0] * 5}
    assert read(model_type="phi3", rope_scaling={"type": "yarn", **lists}).kind == "longrope"
    assert read(rope_scaling={"type": "yarn", "factor": 4.0}).kind == "yarn"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"head_dim": 7}, "head_dim is 7, expected an even number"),
        ({"rope_theta": 1}, "rope_theta is 1, expected a number above 1"),
        (
            {"rope_parameters": {"rope_theta": 0.5, "rope_type": "yarn", "factor": 4.0}},
            "rope_parameters.rope_theta is 0.5, expected a number above 1",
        ),
        ({"rope_parameters": []}, r"rope_parameters is \[\], expected an object"),
    ],
)
def test_rotations_that_cannot_be_computed_are_refused(keys, problem):
    with pytest.raises(ConfigError, match=rf"1 problem in the config\n  {problem}$"):
        read(**keys)


def test_yarn_rotates_an_even_number_of_channels():
    settings = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.9}
    with pytest.raises(
        ConfigError, match=r"1 problem in the config\n  rope_parameters.rope_type is 'yarn', .*, not 9$"
    ):
        read(model_type="stablelm", hidden_size=40, use_qkv_bias=False, rope_parameters=settings)


@pytest.mark.parametrize("fraction", [1e9, 1e30])
def test_a_huge_share_of_channels_is_one_problem_and_takes_no_memory(fraction):
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 5}
    problem = r"1 problem in the config\n  partial_rotary_factor is 1e\+\d+, expected a share of the 10 channels"
    with pytest.raises(ConfigError, match=problem):
        read(model_type="phi3", partial_rotary_factor=fraction, rope_scaling=factors)
