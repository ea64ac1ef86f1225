"""The memory that a model needs equals what it takes when it is loaded."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from architecture_fixtures import NAMES as ARCHITECTURE_FIXTURES
from architecture_fixtures import Fixture

import rushlight
from rushlight import demo
from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.checkpoint import open_checkpoint
from rushlight.loading.footprint import DTYPES, footprint
from rushlight.loading.inspection import module_tree

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gpt2"


def footprint_in(source):
    with open_checkpoint(source) as checkpoint:
        return footprint(checkpoint)


def test_the_embedded_model():
    model = rushlight.load()
    found = footprint_in(demo.folder())
    assert found.n_parameters == model.n_parameters == 3_554_304
    assert found.stored == "f16"
    assert (found.context_length, found.tokens) == (512, 512)
    shape = model.config.kv_shape
    block_bytes = open_backend("reference", "f32").kv_block_bytes(shape)
    assert found.kv_bytes("f32", BLOCK_SIZE) == block_bytes
    assert found.kv_bytes("f16", BLOCK_SIZE) == found.kv_bytes("int8", BLOCK_SIZE) == block_bytes // 2


def test_weights_by_role():
    found = footprint_in(demo.folder())
    with open_checkpoint(demo.folder()) as checkpoint:
        shapes = {tensor.name: tensor.shape for tensor in checkpoint.values()}
        sizes = {name: tensor.n_elements for name, tensor in checkpoint.items()}
    vectors = sum(size for name, size in sizes.items() if len(shapes[name]) == 1)
    tables = sizes["wte.weight"] + sizes["wpe.weight"]
    linear = sum(sizes.values()) - vectors - tables
    assert found.weight_bytes == {
        "f64": 4 * vectors + 8 * (tables + linear),
        "f16": 4 * vectors + 2 * (tables + linear),
        "f32": 4 * (vectors + tables + linear),
        "bf16": 4 * vectors + 2 * (tables + linear),
        "int8": int(4 * vectors + 1.0625 * (tables + linear)),
        "int4": int(4 * vectors + 0.8125 * tables + 0.5625 * linear),
    }


def test_the_stored_dtype_is_that_of_most_bytes():
    assert footprint_in(FIXTURES / "gelu_new").stored == "f32"
    assert footprint_in(FIXTURES / "gelu_fast_bf16").stored == "bf16"


def test_a_tied_head_is_counted_once_and_an_untied_one_twice():
    for name in ("gelu_new", "gelu_untied"):
        assert footprint_in(FIXTURES / name).n_parameters == rushlight.load(FIXTURES / name).n_parameters


def test_a_bare_file_has_a_footprint(tmp_path):
    shutil.copy(demo.folder() / "model.safetensors", tmp_path)
    assert footprint_in(tmp_path).n_parameters == 3_554_304


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": "gpt2"}, {}, None])
def test_an_invalid_config_and_another_type_have_none(tmp_path, config):
    shutil.copy(FIXTURES / "gelu_new" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text("[" if config is None else json.dumps(config))
    assert footprint_in(tmp_path) is None


def test_the_largest_dtype_that_fits_is_suggested():
    found = footprint_in(FIXTURES / "gelu_new")
    assert found.fitting(found.need_bytes("f32")) == "f32"
    for larger, dtype in pairwise(DTYPES):
        have = found.need_bytes(larger) - 1
        assert found.fitting(have) == dtype
    assert found.fitting(found.need_bytes("int4") - 1) is None


def test_the_requested_dtype_is_checked():
    found = footprint_in(FIXTURES / "gelu_new")
    have = found.need_bytes("int8")
    assert found.fitting(have, "int8") == found.fitting(have, "f16") == found.fitting(have) == "int8"
    assert found.fitting(have - 1, "int8") == "int4"
    assert found.describe_fit(have, "int8").startswith("fits in int8 (")


def test_a_large_model_is_described_before_it_is_loaded(monkeypatch, caplog):
    caplog.set_level("INFO", "rushlight")
    rushlight.load()
    assert not any("fits in" in message for message in caplog.messages)
    monkeypatch.setattr("rushlight.loading.load.LARGE_BYTES", 2**20)
    monkeypatch.setattr("rushlight.loading.load.bind", lambda *_, **__: pytest.fail("the weights are read"))
    with pytest.raises(pytest.fail.Exception):
        rushlight.load(dtype="int8")
    assert caplog.messages[-1].startswith("tales fits in int8 (5.9 MiB of ")


def test_a_dtype_above_the_stored_one_is_not_suggested():
    found = footprint_in(FIXTURES / "gelu_fast_bf16")
    assert found.fitting(2**40) == "bf16"
    assert found.fitting(found.need_bytes("bf16") - 1) == "int8"


def test_the_sentences():
    found = footprint_in(demo.folder())
    assert found.describe() == (
        "weights in f16 6.8 MiB (f32 13.6 MiB, int8 3.6 MiB, int4 2.2 MiB); keys and values 2.2 MiB for all 512 tokens"
    )
    assert found.describe_fit(2**30) == "fits in f16 (9.1 MiB of 1.0 GiB available)"
    assert found.describe_fit(6 * 2**20) == "fits with --dtype int8 (5.9 MiB of 6.0 MiB available; f16 needs 9.1 MiB)"
    assert found.describe_fit(2**20) == "does not fit: even int4 needs 4.4 MiB of 1.0 MiB available"


def test_a_long_context_is_stated_for_some_tokens_and_for_all():
    found = footprint_in(demo.folder())._replace(context_length=131072)
    assert found.describe().endswith("keys and values 9.0 MiB for 2,048 tokens, 576.0 MiB for all 131,072 tokens")


def test_a_layer_with_a_window_keeps_no_more_than_its_window():
    found = footprint_in(FIXTURES / "gelu_new")
    assert found.windows == (None, None)
    half = found._replace(windows=(None, 8))
    assert half.kv_bytes("f32", 8) == found.kv_bytes("f32", 8)
    assert half.kv_bytes("f32", 100) == found.kv_bytes("f32", 54)


@pytest.mark.parametrize("name", ARCHITECTURE_FIXTURES)
def test_every_architecture_has_the_parameters_of_its_checkpoint(tmp_path, name):
    with open_checkpoint(Fixture(name).write(tmp_path)) as checkpoint:
        found, tree = footprint(checkpoint), module_tree(checkpoint)
    if name == "gemma3":  # its vision part is not loaded
        assert found.n_parameters < tree.n_parameters
    else:
        assert found.n_parameters == tree.n_parameters
