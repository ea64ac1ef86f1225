"""The benchmarked runtimes, one file each. Functions import the libraries, so that their start-up is timed.

Each file defines:

    DISTRIBUTION                            the name of its package on PyPI
    NEEDS                                   packages it needs for text models but does not depend on
    DTYPES                                  the rushlight dtypes that it supports
    prepare(checkpoint, dtype, folder)      converts the checkpoint -> the path to load
    Runtime(path, dtype, threads)           a loaded model
    first_token(path, dtype, threads)       loads the model in a fresh process and prints the first token after PROMPT
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

import rushlight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

PEERS = {
    "rushlight": "rushlight_cpu",
    "llama.cpp": "llama",
    "transformers": "torch_transformers",
    "CTranslate2": "ctranslate",
    "OpenVINO": "openvino_stateful",
}
"""Names of the runtimes -> their modules in this package."""

PROMPT = "Once upon a time"


class Runtime(Protocol):
    """A loaded model. Decoding is greedy, ignores the end-of-text token and uses a KV cache."""

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
