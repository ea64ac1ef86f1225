"""The benchmarked runtimes, one file each. Functions import the libraries, so that their start-up is timed.

Each file defines:

    DISTRIBUTION                            the name of its package on PyPI
    NEEDS                                   packages it needs for text models but does not depend on
    FORMATS                                 its names of weight formats -> the rushlight dtypes they are compared with
    prepare(checkpoint, form, folder)       converts the checkpoint to a format -> the path to load
    Runtime(path, form, threads)            a loaded model
    first_token(path, form, threads)        loads the model in a fresh process and prints the first token after PROMPT
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

import rushlight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

PEERS = {
    "rushlight": "rushlight_cpu",
    "llama.cpp": "llama",
    "transformers": "torch_transformers",
    "CTranslate2": "ctranslate",
    "OpenVINO": "openvino_stateful",
}
"""Names of the runtimes -> their modules in this package."""

SLOW = ("transformers",)
"""Runtimes that are measured in every third round only, and not at long prompts: their steps would dominate the run."""

PROMPT = "Once upon a time"

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class Runtime(Protocol):
    """A loaded model. Decoding is greedy, ignores the end-of-text token and uses a KV cache."""

    def computes(self) -> str:
        """The arithmetic of the products, as the library states it after a prefill: `f32, brgemm avx512`."""
        ...

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(T, V): the logits after every token."""
        ...

    def prefill(self, ids: Sequence[int]) -> None:
        """Computes the next token of a prompt, with an empty cache."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        """Decodes a batch of prompts of equal length: seconds for n_tokens steps, and the tokens.

        The first token of each comes from the prefill, which is not timed, so n_tokens + 1 are returned.
        """
        ...


class LongRuntime(Runtime, Protocol):
    """A runtime whose decoding at a long context is measured, too."""

    def decode_at(self, position: int, n_tokens: int) -> float:
        """Seconds for n_tokens decode steps of one sequence, the last of them at `position`.

        The keys and values before them are computed once and kept.
        """
        ...


def peer(name: str) -> Any:
    """The module of a runtime."""
    module: ModuleType = import_module(f"benchmarks.peers.{PEERS[name]}")
    return module


def installed_version(name: str) -> str | None:
    """The installed version of a runtime, or None. For rushlight, the version that this Python imports."""
    if name == "rushlight":
        return rushlight.__version__
    try:
        return version(peer(name).DISTRIBUTION)
    except PackageNotFoundError:
        return None


def copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Copies the files of the tokenizer."""
    for name in TOKENIZER_FILES:
        if (checkpoint / name).exists():
            (folder / name).write_bytes((checkpoint / name).read_bytes())


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, through the tokenizers library."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
