"""rushlight: port PyTorch models from their .safetensors into a small Python runtime that needs no PyTorch.

    import rushlight

    model = rushlight.load()                          # or a file, a folder, a hub id
    print(model.generate("Once upon a time"))
    for text in model.stream("Once upon a time", temperature=0.8, seed=1):
        print(text, end="", flush=True)

Importing the package imports none of its modules; each is imported on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes longer than the package, and delays a program's signal handlers
if TYPE_CHECKING:
    from rushlight.chat import Chat
    from rushlight.checkpoint import open_checkpoint
    from rushlight.errors import RushlightError
    from rushlight.generation import Perplexity
    from rushlight.loading.convert import convert
    from rushlight.loading.inspection import inspect
    from rushlight.loading.load import load, load_module
    from rushlight.porting.check import check
    from rushlight.proof.record import record
    from rushlight.proof.verify import verify
    from rushlight.runtime.lens import lens
    from rushlight.runtime.model import Model
    from rushlight.runtime.request import Request
    from rushlight.runtime.result import Beam, Generation, Score, Stats
    from rushlight.runtime.streaming import AsyncStream, Delta, Stream
    from rushlight.version import __version__

__all__ = [
    "AsyncStream",
    "Beam",
    "Chat",
    "Delta",
    "Generation",
    "Model",
    "Perplexity",
    "Request",
    "RushlightError",
    "Score",
    "Stats",
    "Stream",
    "__version__",
    "check",
    "convert",
    "inspect",
    "lens",
    "load",
    "load_module",
    "open_checkpoint",
    "record",
    "verify",
]

_LAZY_IMPORTS = {
    "AsyncStream": "rushlight.runtime.streaming",
    "Beam": "rushlight.runtime.result",
    "Chat": "rushlight.chat",
    "Delta": "rushlight.runtime.streaming",
    "Generation": "rushlight.runtime.result",
    "Model": "rushlight.runtime.model",
    "Perplexity": "rushlight.generation",
    "Request": "rushlight.runtime.request",
    "RushlightError": "rushlight.errors",
    "Score": "rushlight.runtime.result",
    "Stats": "rushlight.runtime.result",
    "Stream": "rushlight.runtime.streaming",
    "__version__": "rushlight.version",
    "check": "rushlight.porting.check",
    "convert": "rushlight.loading.convert",
    "inspect": "rushlight.loading.inspection",
    "lens": "rushlight.runtime.lens",
    "load": "rushlight.loading.load",
    "load_module": "rushlight.loading.load",
    "open_checkpoint": "rushlight.checkpoint",
    "record": "rushlight.proof.record",
    "verify": "rushlight.proof.verify",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY_IMPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
