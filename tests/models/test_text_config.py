"""A config is declared once; reading, inference from shapes, KV shape and repr follow from the declaration."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import pytest

from rushlight.errors import ConfigError, PortError
from rushlight.models import Heads, TextConfig, field
from rushlight.nn import KVShape


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """A config with the variations of architectures: grouped keys, head_dim, aliases, computed fields."""

    model_type: ClassVar = "toy"
    benign_keys: ClassVar = frozenset({"colour"})
    unsupported: ClassVar = {"mixture": (False, 1)}

    vocab_size: int = field.size(axis=("embed.weight", 0))
    tie_word_embeddings: bool = field.flag(False)
    hidden_size: int = field.width(axis=("embed.weight", 1), aliases=("d_model",))
    num_hidden_layers: int = field.layers(blocks="layers")
    num_attention_heads: int = field.heads()
    num_key_value_heads: int = field.kv_heads(default=lambda read: read["num_attention_heads"])
    head_dim: int = field.head_dim(default=lambda read: read["hidden_size"] // read["num_attention_heads"])
    max_position_embeddings: int = field.positions(older_key="n_ctx")
    intermediate_size: int = field.size(
        lambda read: 4 * read["hidden_size"], infer=field.other_side("up.weight", of=("embed.weight", 1))
    )
    hidden_act: str = field.activation("silu")
    eps: float = field.positive(1e-6)
    side: str = field.choice(("left", "right"), "right")
    pair: tuple[int, int] = field.computed(lambda fields, name, read: (fields.size(name, 3), read["vocab_size"]))
    rope_settings: dict = field.computed(lambda fields, name, _: fields.raw(name, {}))


SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
}


def read(**values):
    return Config.from_json(SIZES | values)


def problem(**values):
    with pytest.raises(ConfigError) as caught:
        read(**values)
    return str(caught.value)


def test_defaults_may_follow_from_other_fields():
    config = read()
    assert config.heads == Heads(4, 4, 6)
    assert config.intermediate_size == 96
    assert (config.hidden_act, config.eps, config.side, config.pair) == ("silu", 1e-6, "right", (3, 50))
    assert (config.tie_word_embeddings, config.bos_token_id, config.eos_token_id) == (False, None, ())


def test_kv_shape_and_context_length_follow_from_the_roles():
    config = read(num_key_value_heads=2, head_dim=10)
    assert config.kv_shape == KVShape(n_layer=2, n_kv_head=2, head_dim=10)
    assert config.context_length == 9
    assert str(config) == "num_hidden_layers 2, hidden_size 24, num_attention_heads 4"


def test_an_older_key_is_read_where_the_key_is_missing():
    values = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    assert Config.from_json(values | {"n_ctx": 7}).context_length == 7
    with pytest.raises(ConfigError, match="n_ctx is 0"):
        Config.from_json(values | {"n_ctx": 0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": 25}, "d_model is 25 and hidden_size is 24"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide num_attention_heads 4"),
        ({"model_type": "other"}, "model_type is 'other'"),
        ({"mixture": 4}, "mixture is 4, which rushlight does not support"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"side": "up"}, "side is 'up'"),
        ({"pair": "x"}, "pair is 'x'"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers is 5000"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    assert message in problem(**values)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [0, "x", None])
def test_defaults_that_follow_from_an_invalid_value_are_not_reported_as_well(key, value):
    assert problem(**{key: value}).startswith("1 problem in")


def test_heads_have_to_divide_the_width_where_no_head_dim_is_declared():
    @dataclass(frozen=True, kw_only=True)
    class Plain(TextConfig):
        d: int = field.width()
        n: int = field.layers()
        h: int = field.heads()
        t: int = field.positions()

    with pytest.raises(ConfigError, match="h is 5, which does not divide d 24"):
        Plain.from_json({"vocab_size": 50, "d": 24, "n": 1, "h": 5, "t": 9})


@pytest.mark.parametrize("key", [*SIZES])
def test_a_missing_size_is_named(key):
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        Config.from_json({other: value for other, value in SIZES.items() if other != key})


# Keys that are not read


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_multiplier", 0.22),
        ("embedding_multiplier", 12),
        ("logit_scale", 0.5),
        ("final_logit_softcapping", 30.0),
        ("use_qk_norm", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_theta", 10000.0),
        ("sliding_window", 4096),
        ("attention_type", "local"),
        ("residual_multiplier", 0.5),
        ("bias", "all"),
        ("clip_qkv", 8.0),
        ("alibi", True),
        ("rotary_dim", 64),
        ("scale_attn_by_something", True),
    ],
)
def test_an_unknown_key_that_looks_like_arithmetic_is_refused(key, value):
    assert f"{key} is " in problem(**{key: value})
    assert "may change the arithmetic" in problem(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", None),
        ("sliding_window", None),
        ("use_sliding_window", False),
        ("residual_multiplier", 1.0),
        ("attention_bias", True),  # inferred from the tensors
        ("attention_dropout", 0.1),
        ("attention_probs_dropout_prob", 0.1),
        ("attention_softmax_in_fp32", True),
        ("rope_parameters", {}),
    ],
)
def test_a_value_that_changes_nothing_is_accepted(key, value):
    assert read(**{key: value}) == read()


def test_a_key_that_is_read_is_not_refused_for_its_name():
    assert read(rope_settings={"rope_theta": 1e6}).rope_settings == {"rope_theta": 1e6}
    assert read().rope_settings == {}


def test_other_unknown_keys_are_logged_and_benign_ones_are_not(caplog):
    caplog.set_level(logging.WARNING, logger="rushlight")
    read(colour="red", use_cache=True, temperature=2.0, n_friends=3)
    (record,) = caplog.records
    assert record.getMessage().endswith("ignored unknown keys: n_friends")


# Sizes inferred from the tensors


def test_sizes_are_inferred_from_shapes():
    shapes = {"embed.weight": (50, 24), "up.weight": (31, 24), "layers.0.a": (1,), "layers.1.a": (1,), "x.7.a": (1,)}
    expected = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 31}
    assert Config.infer_sizes(shapes) == expected
    assert Config.infer_sizes(shapes | {"up.weight": (24, 31)}) == expected
    assert Config.infer_sizes({"embed.weight": (50,)}) == {"vocab_size": 50}


@pytest.mark.parametrize(("numbers", "n"), [((0, 1, 2), 3), ((0, 2), 3), ((0, 1, 90), 2), ((), None)])
def test_blocks_are_counted_with_one_that_is_missing_and_without_one_that_is_far_off(numbers, n):
    assert Config.infer_sizes({f"layers.{i}.a": (1,) for i in numbers}).get("num_hidden_layers") == n


def test_without_a_config_it_is_refused():
    with pytest.raises(ConfigError, match=r"there is no config\.json; put the model's config\.json next to"):
        Config.from_tensors({})


# Declarations


def test_a_class_that_declares_no_heads_is_not_a_language_model():
    @dataclass(frozen=True, kw_only=True)
    class Headless(TextConfig):
        d: int = field.width()
        n: int = field.layers()

    with pytest.raises(PortError, match="not a language model: Headless declares no positions, heads"):
        Headless.from_json(SIZES)


def test_a_type_may_extend_and_override_another():
    @dataclass(frozen=True, kw_only=True)
    class Wider(Config):
        model_type: ClassVar = "wider"
        eps: float = field.positive(1e-3)
        logit_scale: float = field.positive(1.0)

    config = Wider.from_json(SIZES | {"logit_scale": 0.5})
    assert (config.eps, config.logit_scale, config.hidden_size) == (1e-3, 0.5, 24)


def test_a_field_without_a_declaration_is_an_error_of_the_port():
    @dataclass(frozen=True, kw_only=True)
    class Plain(Config):
        n_experts: int
        n_shared: int = 2

    with pytest.raises(PortError, match=r"Plain does not state how to read n_experts from config.json; .*field\.size"):
        Plain.from_json(SIZES | {"n_experts": 4})
