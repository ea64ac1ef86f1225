"""GPT-2's config: valid and invalid config.json files, and checkpoints without one."""

import json
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.errors import BindError, ConfigError, FormatError
from rushlight.models.gpt2 import GPT2, GPT2Config

ONE = pytest.mark.parametrize("recording", ["gelu_new"], indirect=True)
"""For tests that work with any checkpoint."""

SIZES = {"vocab_size": 50257, "n_positions": 1024}


@pytest.mark.parametrize(
    ("config", "n_parameters"),
    [
        ({"n_embd": 768, "n_layer": 6, "n_head": 12}, 81_912_576),  # distilgpt2
        ({"n_embd": 768, "n_layer": 12, "n_head": 12}, 124_439_808),
        ({"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
        ({"n_embd": 1280, "n_layer": 36, "n_head": 20}, 774_030_080),
        ({"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    ],
)
def test_every_published_size_builds_without_allocating(config, n_parameters):
    tracemalloc.start()
    model = GPT2(GPT2Config.from_json(SIZES | config))
    counted = sum(slot.n_elements for name, slot in model.named_slots() if name not in GPT2.rules.tied)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counted == n_parameters
    assert peak_bytes < 2**21


def test_a_loaded_model_counts_its_parameters(recording):
    rows = recording.config["vocab_size"] + recording.config["n_positions"]
    c, f = recording.config["n_embd"], recording.config["n_inner"] or 4 * recording.config["n_embd"]
    block = (3 * c * c + 3 * c) + (c * c + c) + (c * f + f) + (f * c + c) + 4 * c
    head = 0 if recording.config["tie_word_embeddings"] else recording.config["vocab_size"] * c
    expected = rows * c + recording.config["n_layer"] * block + 2 * c + head
    assert rushlight.load(recording.folder).n_parameters == expected


# A config.json that cannot be read


@ONE
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"n_layer": 2', "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "an array"),
        ("null", "null"),
        ('{"n_layer": 2, "n_layer": 3}', '"n_layer" appears twice'),
        ('{"layer_norm_epsilon": NaN}', "NaN"),
        ('{"n_layer": 1e999}', "beyond the range"),
        ('{"n_layer": ' + "9" * 5000 + "}", "an integer of thousands of digits"),
        ('{"n_layer": ' + "[" * 100_000, "nested too deeply"),
        (b'{"n_layer": "\xff"}', "not UTF-8"),
    ],
    ids=lambda part: repr(part)[:24],
)
def test_a_config_that_is_not_a_json_object_is_an_error(edit, refused, text, message):
    path = edit.folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused(edit.folder, ConfigError)
    assert error.file == str(path)
    assert message in str(error)


@ONE
def test_a_config_of_a_gigabyte_is_refused_unread(edit, refused):
    path = edit.folder / "config.json"
    with path.open("r+b") as file:
        file.truncate(10**9)
    tracemalloc.start()
    error = refused(edit.folder, ConfigError)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "1,000,000,000" in str(error)
    assert peak_bytes < 10**8


# Invalid values


@ONE
@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "12", 10**18, [12]], ids=repr)
def test_out_of_range_sizes_are_an_error(edit, key, value):
    edit.config[key] = value
    with pytest.raises(ConfigError) as caught:
        edit.load()
    assert f"{key} is {json.dumps(value) if isinstance(value, bool) else repr(value)}" in str(caught.value)
    assert "an integer from 1" in str(caught.value)
    assert caught.value.file == str(edit.folder / "config.json")


@ONE
@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "vocab_size"])
def test_a_missing_size_is_an_error(edit, refused, key):
    del edit.config[key]
    assert f"{key} is missing" in str(refused(edit.write(), ConfigError))


@ONE
@pytest.mark.parametrize("value", [0, 0.0, -1e-5, True, "1e-5", [1e-5]], ids=repr)
def test_epsilon_must_be_positive(edit, refused, value):
    edit.config["layer_norm_epsilon"] = value
    assert "layer_norm_epsilon is" in str(refused(edit.write(), ConfigError))


@ONE
@pytest.mark.parametrize(
    "key", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings"]
)
@pytest.mark.parametrize("value", [0, 1, "true"], ids=repr)
def test_switches_must_be_booleans(edit, refused, key, value):
    edit.config[key] = value
    assert f"{key} is {value!r}, expected true or false" in str(refused(edit.write(), ConfigError))


@ONE
def test_n_head_must_divide_n_embd(edit, refused):
    edit.config["n_head"] = 4
    assert "n_head is 4, which does not divide n_embd 18" in str(refused(edit.write(), ConfigError))


@ONE
def test_two_names_of_one_size_must_agree(edit, refused):
    edit.config["max_position_embeddings"] = 128
    error = str(refused(edit.write(), ConfigError))
    assert "max_position_embeddings is 128" in error
    assert "n_positions is 257" in error


@ONE
@pytest.mark.parametrize("activation", ["tanh", "gelu_10", "GELU_NEW", 3], ids=repr)
def test_unknown_activation_names_the_known(edit, refused, activation):
    edit.config["activation_function"] = activation
    error = str(refused(edit.write(), ConfigError))
    assert f"activation_function is {activation!r}" in error
    for known in ("gelu_new", "gelu", "relu", "silu", "quick_gelu", "gelu_fast", "gelu_pytorch_tanh"):
        assert known in error


@ONE
@pytest.mark.parametrize("model_type", ["unheard", "", 5, ["gpt2"]], ids=repr)
def test_an_unknown_architecture_is_refused(edit, refused, model_type):
    edit.config["model_type"] = model_type
    error = str(refused(edit.write(), ConfigError))
    assert repr(model_type) in error
    assert "`rushlight models` lists what is built in" in error


@ONE
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("pruned_heads", {"0": [1]}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("sliding_window", 128),
    ],
)
def test_a_key_that_changes_the_arithmetic_is_refused(edit, refused, key, value):
    edit.config[key] = value
    assert f"{key} is" in str(refused(edit.write(), ConfigError))


@ONE
@pytest.mark.parametrize("value", [-2, True, "0", 1.0], ids=repr)
def test_eos_token_id_must_be_in_the_vocabulary(edit, refused, value):
    edit.config["eos_token_id"] = value
    assert "eos_token_id is" in str(refused(edit.write(), ConfigError))


@ONE
def test_all_problems_are_reported_at_once(edit, refused):
    edit.config |= {"n_layer": 0, "n_head": "3", "activation_function": "tanh", "layer_norm_epsilon": -1}
    error = str(refused(edit.write(), ConfigError))
    for key in ("n_layer", "n_head", "activation_function", "layer_norm_epsilon"):
        assert f"{key} is" in error
    assert "4 problems" in error


@ONE
@pytest.mark.parametrize("key", ["n_embd", "n_head", "vocab_size"])
def test_one_invalid_size_is_one_problem(edit, refused, key):
    """Values that are checked against it are not reported as well."""
    edit.config[key] = 0
    assert "1 problem in" in str(refused(edit.write(), ConfigError))


# Keys that do not change the arithmetic


@ONE
def test_unknown_keys_never_execute_code(recording, edit, caplog):
    edit.config |= {
        "auto_map": {"AutoModelForCausalLM": "evil--modeling.Evil"},
        "_attn_implementation_internal": "os.system",
        "__class__": "evil",
        "from_json": "evil",
        "n_parameters": 1,
    }
    before = set(sys.modules)
    model = edit.load()
    assert not [name for name in set(sys.modules) - before if "evil" in name or "modeling" in name]
    assert type(model.config) is GPT2Config
    assert model.config == rushlight.load(recording.folder).config
    assert recording.error(model) < recording.tolerance["f32"]
    (record,) = caplog.records
    assert "__class__, from_json, n_parameters" in record.getMessage()
    assert "auto_map" not in record.getMessage()


@pytest.mark.parametrize("recording", ["mask_buffers"], indirect=True)
def test_keys_of_old_and_new_versions_are_known(edit, caplog):
    edit.config |= {"_name_or_path": "", "id2label": {"0": "LABEL_0"}, "output_past": True, "torch_dtype": "float32"}
    edit.load()
    assert caplog.records == []


@ONE
def test_n_ctx_is_read_where_n_positions_is_missing(recording, edit):
    edit.config["n_ctx"] = edit.config.pop("n_positions")
    assert edit.load().context_length == recording.config["n_positions"]


@ONE
def test_any_of_several_end_of_text_tokens_ends_the_output(recording, edit):
    (edit.folder / "generation_config.json").unlink()
    later = recording.greedy_ids[3]
    edit.config["eos_token_id"] = [recording.config["eos_token_id"], later]
    result = edit.load().generate(recording.prompt_ids)
    assert result.ids == recording.greedy_ids[: recording.greedy_ids.index(later)]


# A config that does not match the tensors


@ONE
@pytest.mark.parametrize(
    ("key", "value", "numbers"),
    [
        ("vocab_size", 62, ["wte.weight", "(62, 18)", "(61, 18)"]),
        ("n_positions", 300, ["wpe.weight", "(300, 18)", "(257, 18)"]),
        ("n_embd", 21, ["wte.weight", "(61, 21)", "(61, 18)"]),
        ("n_inner", 71, ["h.0.mlp.c_fc.weight", "(18, 71)", "(18, 72)"]),
        ("n_layer", 1, ["h.1.ln_1.weight", "2 blocks", "n_layer 1"]),
        ("n_layer", 3, ["h.2.ln_1.weight", "2 blocks", "n_layer 3"]),
    ],
)
def test_expected_and_found_are_shown(edit, refused, key, value, numbers):
    edit.config[key] = value
    error = str(refused(edit.write(), BindError))
    for number in numbers:
        assert number in error


# No config.json


def tensors_of(n_embd, *, n_layer=2, vocab_size=11, n_positions=9, n_inner=None, prefix=""):
    """Random weights under GPT-2's names."""
    rng = np.random.default_rng(0)
    config = {"n_embd": n_embd, "n_layer": n_layer, "n_head": 1, "vocab_size": vocab_size, "n_positions": n_positions}
    slots = GPT2(GPT2Config.from_json(config | ({"n_inner": n_inner} if n_inner else {}))).named_slots()
    return {
        f"{prefix}{name}": (rng.standard_normal(slot.shape) * 0.3).astype(np.float32)
        for name, slot in slots
        if name != "lm_head.weight"
    }


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("n_head", [1, 3])
def test_the_config_of_a_bare_file_is_inferred_from_its_shapes(prefix, n_head, tmp_path, caplog):
    bare = tmp_path / "weights.safetensors"
    save_file(tensors_of(64 * n_head, n_inner=40, prefix=prefix), bare)
    model = rushlight.load(bare)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for words in ("no config.json", "n_layer 2", f"n_head {n_head}", "head_dim 64", "tied"):
        assert words in record.getMessage()

    config = {"n_layer": 2, "n_head": n_head, "n_embd": 64 * n_head, "vocab_size": 11, "n_positions": 9, "n_inner": 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert np.array_equal(rushlight.load(bare).logits([1, 2, 3]), model.logits([1, 2, 3]))
    assert rushlight.load(bare).config == model.config


@pytest.mark.parametrize("equal", [True, False])
def test_a_bare_file_with_a_head_is_tied_if_the_head_is_the_table(equal, tmp_path):
    tensors = tensors_of(64)
    tensors["lm_head.weight"] = tensors["wte.weight"] if equal else tensors["wte.weight"][::-1].copy()
    save_file(tensors, tmp_path / "weights.safetensors")
    assert rushlight.load(tmp_path).config.tie_word_embeddings is equal


def test_a_bare_file_with_linear_layers_is_refused_with_that_cause(tmp_path, refused):
    tensors = tensors_of(64)
    for name in list(tensors):
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
            tensors[name] = tensors[name].T.copy()
    save_file(tensors, tmp_path / "weights.safetensors")
    error = refused(tmp_path, BindError)
    assert len(error.problems) == 6  # c_attn, c_fc and mlp.c_proj of two blocks; attn.c_proj is square
    assert all("Linear" in problem.fix for problem in error.problems)


@ONE
def test_a_bare_file_with_another_head_dim_needs_its_config(edit, refused):
    (edit.folder / "config.json").unlink()
    error = refused(edit.folder, ConfigError)
    assert "n_embd 18 is not a multiple of 64" in str(error)
    assert "config.json" in error.remedy


def test_a_bare_file_of_another_architecture_is_an_error(tmp_path, refused):
    save_file({"model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4), np.float32)}, tmp_path / "x.safetensors")
    error = refused(tmp_path, FormatError)
    assert "of the Llama family" in str(error)
