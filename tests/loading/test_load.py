"""Loading the embedded model, folders and bare files, and the errors."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight import demo
from rushlight.errors import (
    ConfigError,
    FormatError,
    PortError,
    RequestError,
    RushlightError,
    SourceError,
    TokenizerError,
)


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded model."""
    return shutil.copytree(demo.folder(), tmp_path / "tales", ignore=shutil.ignore_patterns("*.py", "__pycache__"))


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_source_is_the_embedded_model():
    assert rushlight.load().name == "tales"


@pytest.mark.parametrize("kv_bytes", [-1, 1e8, "1 GB"])
def test_an_invalid_kv_bytes_is_an_error(kv_bytes):
    with pytest.raises(RequestError, match=r"kv_bytes must be an integer"):
        rushlight.load(kv_bytes=kv_bytes)


def test_a_missing_source_never_loads_the_embedded_model():
    with pytest.raises(SourceError):
        rushlight.load("./no-such-model.safetensors")


@pytest.mark.parametrize("dtype", ["auto", "f32", "f64"])
def test_auto_is_the_dtype_of_the_checkpoint(dtype):
    model = rushlight.load(dtype=dtype)
    assert model.dtype == ({"auto": "f16"}.get(dtype, dtype))
    assert model.logits("The").dtype == (np.float64 if dtype == "f64" else np.float32)


def test_the_tokenizer_next_to_the_weights_is_used(folder):
    assert rushlight.load(folder).generate("The king", max_tokens=3).text


def test_without_a_tokenizer_a_model_takes_ids(folder):
    (folder / "tokenizer.json").unlink()
    model = rushlight.load(folder)
    assert model.tokenizer is None
    assert len(model.generate([1, 2, 3], max_tokens=3).ids) == 3


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = 4096
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=r"ids up to 4096, and the model embeds 4096"):
        rushlight.load(folder)


def test_ids_without_a_token_are_never_sampled(folder):
    """nanoGPT, for example, pads its vocabulary to 50,304 rows."""
    tensors = load_tensors(folder)
    table = tensors["wte.weight"]
    tensors["wte.weight"] = np.concatenate(
        [table, np.full((4, 192), 50, np.float32), np.full((4, 192), -50, np.float32)]
    )
    save_file(tensors, folder / "model.safetensors")
    set_config(folder, vocab_size=4104)
    model = rushlight.load(folder)
    assert model.logits("The king")[-1].argmax() >= 4096
    assert max(model.generate("The king", max_tokens=10).ids) < 4096


def load_tensors(folder):
    """The tensors in float32."""
    with rushlight.open_checkpoint(folder) as checkpoint:
        return {name: tensor.float32() for name, tensor in checkpoint.items()}


def gpt2_small(folder, n_layer=1):
    """A bare file of GPT-2's vocabulary, two heads wide."""
    rng = np.random.default_rng(0)
    c, shapes = 128, {}
    for i in range(n_layer):
        shapes |= {
            f"h.{i}.ln_1.weight": (c,),
            f"h.{i}.ln_1.bias": (c,),
            f"h.{i}.attn.c_attn.weight": (c, 3 * c),
            f"h.{i}.attn.c_attn.bias": (3 * c,),
            f"h.{i}.attn.c_proj.weight": (c, c),
            f"h.{i}.attn.c_proj.bias": (c,),
            f"h.{i}.ln_2.weight": (c,),
            f"h.{i}.ln_2.bias": (c,),
            f"h.{i}.mlp.c_fc.weight": (c, 4 * c),
            f"h.{i}.mlp.c_fc.bias": (4 * c,),
            f"h.{i}.mlp.c_proj.weight": (4 * c, c),
            f"h.{i}.mlp.c_proj.bias": (c,),
        }
    shapes |= {"wte.weight": (50257, c), "wpe.weight": (64, c), "ln_f.weight": (c,), "ln_f.bias": (c,)}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2) for name, shape in shapes.items()}
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def test_a_bare_file_of_gpt2s_vocabulary_gets_gpt2s_sizes_and_tokenizer(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rushlight"):
        model = rushlight.load(gpt2_small(tmp_path))
    assert (model.config.n_layer, model.config.n_head, model.config.n_positions) == (1, 2, 64)
    assert (model.tokenizer.encode("Hello"), model.eos_ids) == ([15496], (50256,))
    config_note, tokenizer_note = (record.getMessage() for record in caplog.records)
    assert config_note.startswith("no config.json: assuming gpt2 with n_layer 1, n_embd 128, n_head 2")
    assert "head_dim 64" in config_note
    assert tokenizer_note.startswith("no tokenizer next to the weights: using GPT-2's")


def test_a_bare_file_of_an_unknown_architecture_is_refused(tmp_path):
    save_file({"encoder.weight": np.zeros((4, 4), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(
        FormatError, match=r"match no known architecture.*rushlight inspect.*rushlight port.*rushlight models"
    ):
        rushlight.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("model_type", ["lalma", 7, ["gpt2"]])
def test_an_unknown_model_type_is_refused_with_the_way_to_port_it(folder, model_type):
    set_config(folder, model_type=model_type)
    with pytest.raises(ConfigError, match=r"no architecture .*rushlight port \S+tales -o .*rushlight models"):
        rushlight.load(folder)


def test_the_line_that_writes_a_port_quotes_the_path(folder):
    set_config(folder, model_type="lalma")
    spaced = folder.rename(folder.with_name("my model"))
    with pytest.raises(ConfigError) as caught:
        rushlight.load(spaced)
    assert f"`rushlight port '{spaced}' -o my_model.py`" in caught.value.remedy
    [finding] = [finding for finding in rushlight.check(spaced).findings if finding.cause == "architecture"]
    assert f"`rushlight port '{spaced}' -o my_model.py`" in finding.fix
    with pytest.raises(PortError) as missing:
        rushlight.load(spaced, port="none.py")
    assert missing.value.remedy == f"`rushlight port '{spaced}' -o none.py` writes one"


def test_the_error_of_a_draft_model_says_so(folder):
    set_config(folder, model_type="lalma")
    with pytest.raises(ConfigError) as caught:
        rushlight.load(draft=folder)
    assert caught.value.message.startswith("the draft model cannot be loaded: rushlight has no architecture 'lalma'")
    with pytest.raises(SourceError, match="the draft model cannot be loaded: "):
        rushlight.load(draft="no-such-model.safetensors")


def test_an_unknown_architecture_is_named_by_its_family(folder):
    tensors = {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    set_config(folder, model_type="lalma")
    with pytest.raises(ConfigError, match=r"no architecture 'lalma'.*of the Llama family.*rushlight port \S+tales -o "):
        rushlight.load(folder)
    set_config(folder, model_type=None)
    with pytest.raises(
        ConfigError, match=r"model_type is missing; .*of the Llama family.*config.json that was published"
    ):
        rushlight.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no config.json.*of the Llama family.*config.json that was published"):
        rushlight.load(folder)


def test_a_config_without_a_model_type_is_recognised_by_names(folder):
    set_config(folder, model_type=None)
    assert rushlight.load(folder).config.n_layer == 6


def test_generation_config_sets_the_end_of_text_tokens(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9], "do_sample": true}')
    assert rushlight.load(folder).eos_ids == (7, 9)


def test_an_end_of_text_token_beyond_the_vocabulary_is_ignored_with_a_warning(folder, caplog):
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 50256]}')
    assert rushlight.load(folder).eos_ids == (7,)
    assert "generation_config.json: eos_token_id [50256] is beyond the vocabulary of 4096" in caplog.text


@pytest.mark.parametrize("eos", ["-2", "true", '"a"', "[1, null]"])
def test_a_generation_config_with_invalid_tokens_is_refused(folder, eos):
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {eos}}}')
    with pytest.raises(ConfigError, match=r"(?s)generation_config.json: .*eos_token_id is"):
        rushlight.load(folder)


@pytest.mark.parametrize("name", ["wte.weight", "h.3.mlp.c_fc.weight", "ln_f.bias"])
def test_nan_in_the_weights_raises_instead_of_generating(folder, name):
    tensors = load_tensors(folder)
    tensors[name].flat[0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RushlightError, match="finite"):
        rushlight.load(folder).generate([0, 1], max_tokens=5)


def test_a_process_can_exit_while_weights_are_read():
    script = """
from contextlib import ExitStack
import rushlight
from rushlight.loading.background import BackgroundCall
model = rushlight.load(threads=1)
BackgroundCall(lambda: [model.logits([1]) for _ in range(100)], ExitStack())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_saving_over_the_file_that_was_loaded_is_safe(folder):
    model = rushlight.load(folder)
    before = model.logits("The king")
    save_file({"other": np.zeros(3, np.float32)}, folder / "model.safetensors")
    assert np.array_equal(model.logits("The king"), before)
    assert list(load_file(folder / "model.safetensors")) == ["other"]


def test_a_block_number_with_a_leading_zero_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["h.01.ln_1.weight"] = tensors["h.1.ln_1.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RushlightError) as caught:
        rushlight.load(folder)
    [problem] = caught.value.problems
    assert problem.fix == "a block number without leading zeros is expected: h.1"
