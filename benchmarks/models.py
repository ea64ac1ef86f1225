"""The models of a benchmark run: shapes of well-known models with random weights, trained ones, or any folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import GPT2_SMALL, LLAMA32_1B, QWEN3_600M, SMOLLM2_135M, write_checkpoint, write_decoder

SHAPES: dict[str, dict[str, Any] | None] = {
    "gpt2": None,
    "smollm2": SMOLLM2_135M,
    "qwen3-shape": QWEN3_600M,
    "llama-shape": LLAMA32_1B,
}
"""Names of the models -> their config.json; GPT-2's is written by `write_checkpoint`."""

TITLES = {
    "gpt2": "GPT-2 124M shape",
    "smollm2": "SmolLM2-135M",
    "qwen3-shape": "Qwen3-0.6B shape",
    "llama-shape": "Llama-3.2-1B shape",
}

LARGE = 300_000_000
"""Parameters of a model that is measured in fewer tokens, and with few dtypes in memory at once."""


@dataclass(frozen=True)
class BenchmarkModel:
    """A checkpoint to measure.

    Attributes:
        name: as in the results.
        folder: the checkpoint.
        weights: "trained weights" or "random weights".
        vocab_size, context: the sizes that workloads depend on.
        n_parameters: as many as the files have room for.
    """

    name: str
    folder: Path
    weights: str
    vocab_size: int
    context: int
    n_parameters: int

    @property
    def is_large(self) -> bool:
        return self.n_parameters > LARGE

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)


def benchmark_model(name: str, work: Path) -> BenchmarkModel:
    """A model of SHAPES, written to `work` if it is not there, or the checkpoint in a folder.

    SmolLM2 has its trained weights where RUSHLIGHT_REAL_MODELS is set (see tests/real/real_models.py).

    Raises:
        FileNotFoundError: the folder has no config.json.
    """
    trained = os.environ.get("RUSHLIGHT_REAL_MODELS")
    if name not in SHAPES:
        return _described(Path(name).resolve().name, Path(name).resolve(), "weights of the folder")
    if name == "smollm2" and trained:
        return _described(name, Path(trained, "smollm2").resolve(), "trained weights")
    folder = work / ("gpt2-small" if name == "gpt2" else name)
    if not (folder / "config.json").exists():
        shape = SHAPES[name]
        if shape is None:
            write_checkpoint(folder, GPT2_SMALL)
        else:
            write_decoder(folder, shape)
    return _described(name, folder, "random weights")


def _described(name: str, folder: Path, weights: str) -> BenchmarkModel:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings") or config.get("n_positions") or 1024
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    n_parameters = n_bytes // (4 if config.get("dtype") in ("float32", None) else 2)
    return BenchmarkModel(name, folder, weights, config["vocab_size"], context, n_parameters)
