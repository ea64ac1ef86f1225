"""Checkpoints in the layouts of other programs, with the tensors of the embedded model."""

import json
import shutil

import pytest
from safetensors.numpy import save_file

import rushlight
from rushlight import demo


class Copy:
    """A checkpoint to modify: its tensors by name, its config, and the folder to write it to."""

    LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

    def __init__(self, folder, tensors, config):
        self.folder, self.tensors, self.config = folder, tensors, config

    def prefix(self, prefix):
        self.tensors = {prefix + name: tensor for name, tensor in self.tensors.items()}
        return self

    def write(self, name="model.safetensors", **options):
        self.folder.mkdir(exist_ok=True)
        if self.config is not None:
            (self.folder / "config.json").write_text(json.dumps(self.config))
        save_file({k: v.copy(order="C") for k, v in self.tensors.items()}, self.folder / name, **options)
        return self.folder

    def check(self, **options):
        return rushlight.check(self.write(), **options)


@pytest.fixture(scope="session")
def tales_tensors():
    with rushlight.open_checkpoint(demo.folder()) as checkpoint:
        return {name: tensor.float32() for name, tensor in checkpoint.items()}


@pytest.fixture
def tales(tales_tensors, tmp_path):
    """The embedded model in float32, with its config and tokenizer."""
    folder = tmp_path / "tales"
    folder.mkdir()
    shutil.copy(demo.folder() / "tokenizer.json", folder)
    return Copy(folder, dict(tales_tensors), json.loads((demo.folder() / "config.json").read_text()))


@pytest.fixture
def nanogpt(tales):
    """The embedded model as nanoGPT's model.py saves it: a prefix, nn.Linear weights, the head next to the table."""
    tales.tensors = {
        f"transformer.{name}": tensor.T if name.endswith(Copy.LINEAR) else tensor
        for name, tensor in tales.tensors.items()
    }
    tales.tensors["lm_head.weight"] = tales.tensors["transformer.wte.weight"]
    return tales


@pytest.fixture(scope="session")
def tale():
    """The completion of the embedded model."""
    return rushlight.load(dtype="f32").generate("Once upon a time", max_tokens=20).text
