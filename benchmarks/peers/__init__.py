"""The runtimes, one file each. A file imports its library only inside functions, so that what starts is what is timed.

Each file has:

    DISTRIBUTION                            what pip calls it
    NEEDS                                   what it does not require, but cannot run a text model without
    DTYPES                                  our dtype words that it has an equal of
    prepare(checkpoint, dtype, folder)      the checkpoint in its own format -> the path that it loads
    Runtime(path, dtype, threads)           a loaded model
    first_token(path, dtype, threads)       loads in a fresh process and prints the first token after PROMPT
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
"""What a runtime is called -> its file here."""

PROMPT = "Once upon a time"


class Runtime(Protocol):
    """A loaded model. Greedy choice, no stop token, keys and values cached."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(T, V): the logits after every token."""
        ...

    def prefill(self, ids: Sequence[int]) -> None:
        """From a prompt to its next token, on an empty cache."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        """Goes on from prompts of one length, together: seconds for n_tokens each after the first, and all the tokens.

        The first token of each belongs to the prefill, which is not timed; n_tokens + 1 are returned.
        """
        ...


def peer(name: str) -> Any:
    """The file of a runtime."""
    module: ModuleType = import_module(f"benchmarks.peers.{PEERS[name]}")
    return module


def installed_version(name: str) -> str | None:
    """The version of a runtime that is installed, or None. Of rushlight, the one that this Python imports."""
    if name == "rushlight":
        return rushlight.__version__
    try:
        return version(peer(name).DISTRIBUTION)
    except PackageNotFoundError:
        return None
