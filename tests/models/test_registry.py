"""The registry imports architectures when they are looked up, and model_type in config.json selects one."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight.errors import BindError, FormatError
from rushlight.models import ARCHITECTURES, PretrainedModel, TextConfig, recognise
from rushlight.models.registry import MODULES


def test_naming_the_architectures_imports_none():
    names = [f"rushlight.models.{module}" for module in MODULES.values()]
    code = (
        "import sys\nfrom rushlight.models import ARCHITECTURES\n"
        f"assert 'gpt2' in ARCHITECTURES and len(ARCHITECTURES) == {len(MODULES)} and 5 not in ARCHITECTURES\n"
        f"assert [*ARCHITECTURES] == {[*MODULES]}\nassert not {{*{names}}} & {{*sys.modules}}\n"
        "ARCHITECTURES['gpt2']\nassert 'rushlight.models.gpt2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_entry_is_a_language_model_of_its_type(model_type):
    architecture = ARCHITECTURES[model_type]
    assert issubclass(architecture, PretrainedModel)
    assert issubclass(architecture.config_type, TextConfig)
    assert architecture.model_type == architecture.config_type.model_type == model_type


def test_an_unknown_type_is_a_key_error():
    with pytest.raises(KeyError):
        ARCHITECTURES["no_such_type"]


class Named:
    def __init__(self, *shape):
        self.shape = shape


def bare(*c_attn, table="wte.weight", prefix=""):
    """Some tensors of a bare file whose embeddings are 64 wide."""
    shapes = {table: (50, 64), "wpe.weight": (9, 64), "h.0.attn.c_attn.weight": c_attn}
    return {prefix + name: Named(*shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("table", ["wte.weight", "lm_head.weight"])
@pytest.mark.parametrize("c_attn", [(64, 192), (192, 64)], ids=["Conv1D", "Linear"])
def test_a_gpt2_is_recognised_without_its_config(c_attn, table, prefix):
    assert recognise(bare(*c_attn, table=table, prefix=prefix)) is ARCHITECTURES["gpt2"]


@pytest.mark.parametrize("c_attn", [(64 + 2 * 16, 64), (64, 64 + 2 * 16), (64, 64), (192,), (64, 3, 64), ()])
def test_the_same_names_with_other_shapes_are_another_architecture(c_attn):
    """GPT-BigCode has GPT-2's names, and one head of keys and values."""
    assert recognise(bare(*c_attn)) is None


@pytest.mark.parametrize("missing", ["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"])
def test_a_gpt2_without_one_of_its_tensors_is_not_recognised(missing):
    assert recognise({name: each for name, each in bare(64, 192).items() if name != missing}) is None


@pytest.fixture
def bigcode(tmp_path):
    """A GPT-BigCode: 64 channels, 4 heads of 16, one of keys and values."""
    shapes = {"wte.weight": (50, 64), "wpe.weight": (9, 64), "h.0.attn.c_attn.weight": (96, 64)}
    save_file({f"transformer.{k}": np.ones(v, np.float32) for k, v in shapes.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_bigcode_without_its_config_is_not_loaded_as_a_gpt2(bigcode):
    with pytest.raises(FormatError, match=r"no config\.json"):
        rushlight.load(bigcode)
    assert rushlight.inspect(bigcode).architecture is None


def test_a_gpt_bigcode_is_identified_by_its_config(bigcode):
    sizes = {"vocab_size": 50, "n_positions": 9, "n_embd": 64, "n_layer": 1, "n_head": 4}
    (bigcode / "config.json").write_text(json.dumps(sizes | {"model_type": "gpt_bigcode"}))
    with pytest.raises(BindError, match="does not fit GPTBigCode"):  # most of its tensors are missing
        rushlight.load(bigcode)
    assert rushlight.inspect(bigcode).architecture == "gpt_bigcode"
