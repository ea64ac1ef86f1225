"""Fixtures: the recordings, and copies of the recorded checkpoint to corrupt."""

import json
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.checkpoint import open_checkpoint
from rushlight.nn import RMSNorm, Rotary
from rushlight.proof import Golden, read_golden, verify
from rushlight.proof.golden import Call, Case
from rushlight.proof.runs import PromptRun, View

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


class Recording(PromptRun):
    """Records a port in the shapes of transformers: a tuple of cosines and sines, and (T, H, D) for norms of heads."""

    def __init__(self, model, ids):
        self.case = Case(ids, None, [])
        super().__init__(View(model.module, self.case, model.module.rules, 1e-5, "golden"), model.config.kv_shape)

    def begin(self, running, args):
        running.given = self.array(args[0])
        return args

    def end(self, running, output):
        arrays, more = {"input": running.given, "output": self.array(output)}, ()
        module = self.view.modules[running.path]
        if isinstance(module, Rotary):
            cosines, sines = (np.tile(part, 2) for part in np.split(arrays["output"], 2, axis=-1))
            arrays, more = {"output": cosines}, (f"0/output/{running.call}/1",)
            self.case.tensors[more[0]] = sines
        elif isinstance(module, RMSNorm) and arrays["output"].shape[1] != module.n_channels:
            shape = (len(arrays["output"]), -1, module.n_channels)
            arrays = {kind: array.reshape(shape) for kind, array in arrays.items()}
        names = {}
        for kind, array in arrays.items():
            if array is None:
                continue
            # Equal arrays are stored once.
            same = (name for name, other in self.case.tensors.items() if np.array_equal(array, other))
            names[kind] = next(same, f"0/{kind}/{running.call}")
            self.case.tensors[names[kind]] = array
        eps = getattr(module, "eps", None)
        self.case.calls.append(Call(running.call, "", eps, names.get("input"), names.get("output"), more))
        return output


@pytest.fixture
def record_port():
    """Records what a port computes for a prompt, as if PyTorch had."""
    return lambda model, ids: Golden({}, "Model", "float32", {}, {}, [Recording(model, ids).case])
