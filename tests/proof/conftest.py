"""Fixtures: the recordings, and copies of the recorded checkpoint to corrupt."""

import json
import shutil
from functools import cached_property
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.checkpoint import open_checkpoint
from rushlight.proof import read_golden, verify

FIXTURES = Path(__file__).parents[1] / "fixtures"
GPT2 = FIXTURES / "gpt2" / "gelu_new"
GPT2_GOLDEN = FIXTURES / "proof" / "gpt2.golden.safetensors"


class Spoiled:
    """A copy of the recorded GPT-2 to change: its config, and its tensors by name without the prefix."""

    def __init__(self, folder):
        shutil.copytree(GPT2, folder)
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.save = save_file

    @cached_property
    def tensors(self):
        tensors = load_file(self.folder / "model.safetensors")
        return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}

    def write(self):
        (self.folder / "config.json").write_text(json.dumps(self.config))
        if "tensors" in vars(self):
            tensors = {name: tensor.copy(order="C") for name, tensor in self.tensors.items()}
            self.save(tensors, self.folder / "model.safetensors")
        return self.folder

    def load(self, **options):
        return rushlight.load(self.write(), **options)

    def report(self, *, weights=True, **options):
        """Verifies it against the recording; with `weights`, its tensors are compared, too."""
        model = self.load(**options)
        if not weights:
            return verify(model, read_golden(GPT2_GOLDEN))
        with open_checkpoint(self.folder) as checkpoint:
            return verify(model, read_golden(GPT2_GOLDEN), checkpoint=checkpoint)


@pytest.fixture
def spoiled(tmp_path):
    return Spoiled(tmp_path / "model")


@pytest.fixture
def golden():
    """The recording of the GPT-2 fixture."""
    return read_golden(GPT2_GOLDEN)


@pytest.fixture
def gpt2():
    return rushlight.load(GPT2)
