"""Checkpoints as other programs and versions write them give the logits of the recorded ones.

A new architecture takes part in the first tests with its fixtures; what only it has is a row of a table.
"""

import numpy as np
import pytest
from architecture_fixtures import NAMES, TOLERANCE, Fixture

MODELS = {name: Fixture(name) for name in NAMES}
FIRST = list({fixture.config["model_type"]: name for name, fixture in reversed(MODELS.items())}.values())
"""A fixture of each architecture."""
TIED = [name for name in NAMES if MODELS[name].config["tie_word_embeddings"]]
ABSENT = object()


@pytest.fixture
def same_logits(tmp_path):
    def same_logits(fixture):
        return fixture.error(fixture.load(tmp_path, dtype="f32")) < TOLERANCE

    return same_logits


# Names

BUFFERS = {"llama": {"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (5,), "model.rotary_emb.inv_freq": (5,)}}
"""Buffers of earlier files by architecture, of which a model has one in each layer; others have Llama's."""


def without_prefix(name, rules):
    return next((name.removeprefix(prefix) for prefix in rules.prefixes if name.startswith(prefix)), name)


@pytest.mark.parametrize("name", FIRST)
def test_the_body_alone_has_no_prefix(name, same_logits):
    fixture = Fixture(name)
    rules = fixture.architecture.rules
    renamed = {without_prefix(name, rules): values for name, values in fixture.tensors.items()}
    assert renamed.keys() != fixture.tensors.keys()
    fixture.tensors = renamed
    assert same_logits(fixture)


@pytest.mark.parametrize("name", FIRST)
def test_buffers_of_earlier_files_are_left_out(name, same_logits):
    fixture = Fixture(name)
    for buffer, shape in BUFFERS.get(fixture.config["model_type"], BUFFERS["llama"]).items():
        for layer in range(2):
            fixture.tensors[buffer.format(layer=layer)] = np.full(shape, 7, np.float32)
    assert same_logits(fixture)


# Tied heads


def tied_names(fixture):
    """The names of the head, which the file does not have, and of the table that it shares."""
    rules = fixture.architecture.rules
    [(head, table)] = rules.tied.items()
    [stored] = [name for name in fixture.tensors if without_prefix(name, rules) == table]
    assert head not in fixture.tensors
    return head, stored


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_may_be_stored_too(name, same_logits):
    fixture = Fixture(name)
    head, table = tied_names(fixture)
    fixture.tensors[head] = fixture.tensors[table].copy()
    assert same_logits(fixture)


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_may_be_stored_alone(name, same_logits):
    fixture = Fixture(name)
    head, table = tied_names(fixture)
    fixture.tensors[head] = fixture.tensors.pop(table)
    assert same_logits(fixture)


# Config


def earlier_keys(config):
    """config.json as transformers 4 writes it: with `rope_scaling`, without layer types that follow from other keys."""
    config["torch_dtype"] = config.pop("dtype")
    settings = config.pop("rope_parameters", None)
    if settings is not None:
        config["rope_theta"] = settings.pop("rope_theta")
        if "partial_rotary_factor" in settings:
            config["partial_rotary_factor"] = settings.pop("partial_rotary_factor")
        kind = settings.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **settings}
    EARLIER.get(config["model_type"], lambda config: None)(config)


def without_layer_types(config):
    del config["layer_types"]


EARLIER = dict.fromkeys(("qwen2", "qwen3", "smollm3"), without_layer_types)
"""What else earlier files have by other keys, or lack."""


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_transformers_4(name, same_logits):
    fixture = Fixture(name)
    earlier_keys(fixture.config)
    assert same_logits(fixture)


def rope_type(kind):
    return lambda config: config["rope_parameters"].update(rope_type=kind)


def both_names_of_the_kind(config):
    config["rope_parameters"]["type"] = config["rope_parameters"]["rope_type"]


CONFIGS = [
    ("llama", {"head_dim": 10, "tie_word_embeddings": True, "pretraining_tp": 2}),
    ("llama_biases", {"tie_word_embeddings": ABSENT, "rope_parameters": ABSENT, "rms_norm_eps": ABSENT}),
    ("llama_mha", {"head_dim": None, "num_key_value_heads": None, "attention_bias": None, "rope_parameters": None}),
    ("llama_mha", {"head_dim": ABSENT, "num_key_value_heads": ABSENT, "attention_bias": ABSENT, "mlp_bias": ABSENT}),
    ("llama", rope_type("dynamic")),
    ("llama_llama3", both_names_of_the_kind),
    ("llama_longrope", rope_type("su")),
    ("mistral", {"layer_types": ["sliding_attention"] * 2}),
    ("mistral_full", {"sliding_window": 0}),
    ("mistral_full", {"layer_types": ["full_attention"] * 2, "sliding_window": 7}),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": False, "max_window_layers": 0, "layer_types": None}),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": ABSENT, "max_window_layers": 0, "layer_types": None}),
    ("qwen2_window", {"layer_types": ABSENT}),
    ("qwen3_128", {"head_dim": ABSENT}),
    ("smollm3", {"no_rope_layers": ABSENT, "tie_word_embeddings": ABSENT, "rope_parameters": ABSENT}),
    ("smollm3", {"no_rope_layers": None, "max_window_layers": 2, "sliding_window": 5}),
    ("smollm3_window", {"no_rope_layers": [False, True, True, False, True], "layer_types": ABSENT}),
    ("granite", {"rope_parameters": ABSENT, "rope_theta": 10000.0, "rope_scaling": None}),
    ("phi3", {"original_max_position_embeddings": ABSENT}),
    ("phi3_longrope", rope_type("su")),
    ("phi3_longrope", rope_type("yarn")),
    ("stablelm", {"use_parallel_residual": False, "qk_layernorm": False}),
    ("starcoder2", {"tie_word_embeddings": ABSENT, "use_bias": ABSENT, "mlp_type": "default"}),
]
"""Fixtures, and other values of keys, or edits, that mean the same."""


@pytest.mark.parametrize(("name", "edit"), CONFIGS)
def test_configs_that_mean_the_same(name, edit, same_logits):
    fixture = Fixture(name)
    if callable(edit):
        edit(fixture.config)
    else:
        edited = fixture.config | edit
        fixture.config = {key: value for key, value in edited.items() if value is not ABSENT}
    assert same_logits(fixture)
