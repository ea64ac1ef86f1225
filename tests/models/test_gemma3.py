"""A Gemma 3 that reads images: its language model alone is loaded, whatever the version of its names."""

import pytest
from architecture_fixtures import TOLERANCE, Fixture

from rushlight.errors import ConfigError
from rushlight.models import ARCHITECTURES

CONFIG = ARCHITECTURES["gemma3"].config_type


def names_of_transformers_4(name):
    """Those of classes since 4.52, which some programs save."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return f"model.{name}"


@pytest.mark.parametrize("rename", [names_of_transformers_4, lambda name: name])
@pytest.mark.parametrize("head", [None, "lm_head.weight", "language_model.lm_head.weight"])
def test_the_language_model_is_found_and_the_rest_is_named_once(rename, head, tmp_path, caplog):
    fixture = Fixture("gemma3")
    fixture.tensors = {rename(name): values for name, values in fixture.tensors.items()}
    if head:
        [table] = [name for name in fixture.tensors if name.endswith("embed_tokens.weight")]
        fixture.tensors[head] = fixture.tensors[table].copy()
    model = fixture.load(tmp_path, dtype="f32")
    assert caplog.messages == ["ignored parts for other tasks: multi_modal_projector, vision_tower"]
    assert fixture.error(model) < TOLERANCE


def test_keys_of_the_file_precede_those_of_text_config():
    values = Fixture("gemma3").config
    text = values["text_config"]
    assert (text["eos_token_id"], text["tie_word_embeddings"], text["bos_token_id"]) == (2, True, 1)
    config = CONFIG.from_json(values | {"eos_token_id": [1, 7], "tie_word_embeddings": False, "bos_token_id": None})
    assert (config.eos_token_id, config.tie_word_embeddings, config.bos_token_id) == ((1, 7), False, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "text_config is missing, expected an object"),
        (5, "text_config is 5, expected an object"),
        ({"model_type": "llama"}, r"text_config\.model_type is 'llama', expected one of gemma3_text"),
        ({"sliding_window": None}, "sliding_window is null"),
        ({"sliding_window": 0}, "sliding_window is 0, expected a number of positions"),
    ],
)
def test_problems_of_text_config(text, problem):
    values = Fixture("gemma3").config
    values["text_config"] = values["text_config"] | text if isinstance(text, dict) else text
    with pytest.raises(ConfigError, match=problem):
        CONFIG.from_json(values)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "no_such_key": 5.0}}},
        {"rope_parameters": {"chunked_attention": {"rope_type": "default"}}},
    ],
)
def test_rotary_settings_that_no_layer_would_use_are_refused(change):
    with pytest.raises(ConfigError, match=r"rope_parameters\."):
        ARCHITECTURES["gemma3_text"].config_type.from_json(Fixture("gemma3_text").config | change)
