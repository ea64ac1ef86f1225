"""Fixtures for tests of models: checkpoints that transformers saved, its recorded outputs, and copies to edit."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight.cli import main

FOLDER = Path(__file__).parents[1] / "fixtures" / "gpt2"
NAMES = sorted(json.loads((FOLDER / "recorded.json").read_text())["fixtures"])


@dataclass(frozen=True)
class Recording:
    """A checkpoint's folder, and the outputs of transformers that make_gpt2_fixtures.py recorded."""

    folder: Path
    config: dict
    prompt_ids: list[int]
    greedy_ids: list[int]
    logits: dict[str, np.ndarray]
    modules: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder):
        expected = load_file(folder / "expected.safetensors")
        return cls(
            folder=folder,
            config=json.loads((folder / "config.json").read_text()),
            prompt_ids=expected["prompt_ids"].tolist(),
            greedy_ids=expected["greedy_ids"].tolist(),
            logits={"f32": expected["logits_f32"], "f64": expected["logits_f64"]},
            modules={key.removeprefix("modules."): x for key, x in expected.items() if key.startswith("modules.")},
        )

    @property
    def ids(self):
        """Returns the ids of a sequence that spans several blocks of the KV cache."""
        return self.prompt_ids + self.greedy_ids

    @property
    def tolerance(self):
        """The bound of `error`, by dtype: four to five times the observed one. Float32 programs differ by 1e-6 here."""
        # transformers' gelu_fast has √(2/π) to ten digits only.
        gelu_fast = self.config["activation_function"] == "gelu_fast"
        return {"f32": 4e-6, "f64": 3e-12 if gelu_fast else 1e-14}

    def error(self, model):
        """The error of the model's logits for the prompt: max |difference from transformers| / max |logit|."""
        found, expected = model.logits(self.prompt_ids), self.logits["f64" if model.dtype == "f64" else "f32"]
        assert found.shape == expected.shape
        return np.abs(found - expected).max() / np.abs(expected).max()


class Edit:
    """A copy of a checkpoint to edit: its config, and the tensors of its model.safetensors by name."""

    def __init__(self, source, folder):
        shutil.copytree(source, folder)
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())

    @cached_property
    def tensors(self):
        return load_file(self.folder / "model.safetensors")

    def write(self):
        """Writes the changes and returns the folder."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        if "tensors" in vars(self):
            # save_file writes memory in its physical order, which is wrong for a transposed view.
            contiguous = {name: tensor.copy(order="C") for name, tensor in self.tensors.items()}
            save_file(contiguous, self.folder / "model.safetensors")
        return self.folder

    def load(self, **options):
        return rushlight.load(self.write(), **options)


@pytest.fixture(params=NAMES)
def recording(request):
    """Every fixture, or only those that a test lists with `parametrize("recording", [...], indirect=True)`."""
    return Recording.read(FOLDER / request.param)


@pytest.fixture
def edit(recording, tmp_path):
    """A copy of the recording's checkpoint to edit."""
    return Edit(recording.folder, tmp_path / recording.folder.name)


@pytest.fixture
def refused(capsys):
    """`refused(source, ConfigError)`: the error of loading, which the command line prints, exiting with 2."""

    def refused(source, kind):
        with pytest.raises(kind) as caught:
            rushlight.load(source)
        assert type(caught.value) is kind
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(source), "--prompt", "x"])
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.endswith(f"error: {caught.value}\n")
        return caught.value

    return refused
