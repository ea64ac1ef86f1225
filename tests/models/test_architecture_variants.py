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

MASKS = {"transformer.h.{layer}.attn.bias": (1, 1, 600, 600), "transformer.h.{layer}.attn.masked_bias": ()}
BUFFERS = {
    "llama": {"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (5,), "model.rotary_emb.inv_freq": (5,)},
    "gpt_neox": {
        "gpt_neox.layers.{layer}.attention.bias": (1, 1, 600, 600),
        "gpt_neox.layers.{layer}.attention.masked_bias": (),
        "gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq": (3,),
    },
    "gpt_neo": {name.replace("attn.", "attn.attention."): shape for name, shape in MASKS.items()},
    "gpt_bigcode": MASKS,
    "gptj": MASKS | {"transformer.h.{layer}.attn.embed_positions": (600, 8), "transformer.embed_positions": (600, 8)},
    "opt": {"model.decoder.version": (1,), "decoder.version": (1,)},
    "bloom": {},
}
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
    settings = config.pop("rope_parameters", {})
    if "rope_theta" in settings:
        config["rope_theta"] = settings.pop("rope_theta")
        if "partial_rotary_factor" in settings:
            config["partial_rotary_factor"] = settings.pop("partial_rotary_factor")
        kind = settings.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **settings}
    EARLIER.get(config["model_type"], lambda config, settings: None)(config, settings)


def without_layer_types(config, _settings):
    del config["layer_types"]


def gemma3_text(config, settings):
    full, sliding = settings["full_attention"], settings["sliding_attention"]
    config["rope_theta"], config["rope_local_base_freq"] = full.pop("rope_theta"), sliding["rope_theta"]
    config["rope_scaling"] = full
    if config["layer_types"] != ["full_attention", "sliding_attention", "full_attention"]:
        del config["layer_types"], config["_sliding_window_pattern"]
        config["sliding_window_pattern"] = 6


def gemma3(config, _settings):
    text = config["text_config"]
    gemma3_text(text, text.pop("rope_parameters"))
    del text["bos_token_id"], text["eos_token_id"], text["tie_word_embeddings"]


def gpt_neox(config, _settings):
    config["rotary_emb_base"], config["rotary_pct"] = config.pop("rope_theta"), config.pop("partial_rotary_factor")
    config |= {"attention_dropout": 0.0, "hidden_dropout": 0.0, "classifier_dropout": 0.1, "rope_scaling": None}


def gpt2_names(config, _settings):
    config |= {"hidden_size": config["n_embd"], "num_hidden_layers": config["n_layer"], "summary_use_proj": True}


def bloom(config, _settings):
    config["n_embed"] = config.pop("hidden_size")
    config["num_hidden_layers"], config["num_attention_heads"] = config.pop("n_layer"), config.pop("n_head")
    config |= {"n_inner": None, "offset_alibi": 100, "seq_length": 2048, "masked_softmax_fusion": True}
    config |= {"attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "skip_bias_add": True}


EARLIER = {
    **dict.fromkeys(("gemma2", "qwen2", "qwen3", "smollm3"), without_layer_types),
    "bloom": bloom,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "gpt_neox": gpt_neox,
    "gpt_bigcode": gpt2_names,
    "gptj": gpt2_names,
    "gpt_neo": lambda config, _: config.pop("attention_layers"),
}
"""What else earlier files have by other keys, or lack."""


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_transformers_4(name, same_logits):
    fixture = Fixture(name)
    earlier_keys(fixture.config)
    assert same_logits(fixture)


def both_keys_of_rope(config):
    """As transformers 4.45 to 4.57 write it."""
    earlier_keys(config)
    config |= {"rope_theta": config["rotary_emb_base"], "partial_rotary_factor": config["rotary_pct"]}


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
    ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": ABSENT}),
    ("gemma", {"hidden_act": ABSENT, "hidden_activation": None, "rope_parameters": ABSENT}),
    ("gemma2", {"hidden_act": "gelu", "layer_types": None, "cache_implementation": "hybrid"}),
    ("gemma3_text", {"hidden_activation": ABSENT, "layer_types": ABSENT, "use_bidirectional_attention": None}),
    ("gpt_neox", {"use_parallel_residual": ABSENT, "attention_bias": ABSENT, "hidden_act": ABSENT}),
    ("gpt_neox", both_keys_of_rope),
    ("gpt_neox_serial", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),  # a quarter is rotated
    ("gpt_neo", {"attention_types": [[["global"], 1], [["local"], 2]], "attention_layers": ABSENT}),
    ("gpt_neo", {"attention_types": ABSENT}),
    ("gpt_neo", {"intermediate_size": None, "activation_function": ABSENT}),
    ("phi", {"num_key_value_heads": 2, "rope_parameters": ABSENT}),
    ("opt", {"word_embed_proj_dim": ABSENT, "enable_bias": ABSENT, "prefix": "</s>", "activation_dropout": 0.0}),
    ("gpt_bigcode", {"multi_query": ABSENT, "num_key_value_heads": ABSENT, "activation_function": ABSENT}),
    ("gpt_bigcode_mha", {"num_key_value_heads": ABSENT}),
    ("bloom", {"num_hidden_layers": 2, "num_attention_heads": 4, "pretraining_tp": 4}),
    ("gptj_whole", {"rotary_dim": None}),
    ("gptj", {"rotary": True, "scale_attn_weights": True, "max_position_embeddings": 600}),
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
