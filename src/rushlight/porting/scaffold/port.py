"""A port to begin with: a Python file with a module for every module of a checkpoint, and a test that binds it.

What names and shapes tell is written: the layers, their sizes, what is equal and so one class. What they do not tell is
what a module computes; where that is not known, calling it raises an error that names what is to be written. Lines are
at most 88 columns, where names allow it, and laid out as `ruff format` and `black` leave them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.errors import PortError
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.porting.check.checker import Checker
from rushlight.porting.check.names import find_architecture
from rushlight.porting.scaffold.gpt2_writer import GPT2Writer
from rushlight.porting.scaffold.writer import Scaffold, Writer

if TYPE_CHECKING:
    import os

    from rushlight.checkpoint import Checkpoint

__all__ = ["scaffold"]


def scaffold(checkpoint: Checkpoint, file: str | os.PathLike[str] = "my_model.py") -> Scaffold:
    """A port of a checkpoint, from its headers and its config.json.

    Args:
        checkpoint: an open checkpoint.
        file: where the module's file will be, for the test beside it.

    Raises:
        PortError: the names are such that no module can have them, or there are none.
        ConfigError: the config.json of a GPT-2 is wrong.
    """
    if not checkpoint:
        raise PortError("there are no tensors to write a port for", file=checkpoint.source)
    gpt2 = _as_gpt2(checkpoint)
    writer = GPT2Writer(checkpoint, *gpt2) if gpt2 else Writer(checkpoint)
    return writer.scaffold(Path(file))


def _as_gpt2(checkpoint: Checkpoint) -> tuple[GPT2Config, tuple[str, ...]] | None:
    """The config of a GPT-2 and the prefixes of its names, or None if it is not one."""
    checker = Checker(checkpoint, readable=False)
    if find_architecture(checker, None) is not GPT2:
        return None
    if "wte.weight" not in map(GPT2.rules.canonical, checker.tensors):
        raise PortError(
            "the table of embeddings is there only under the name of the head that is tied to it",
            file=checkpoint.source,
            remedy="`rushlight check` writes the lines that fix it",
        )
    path = checkpoint.sidecar("config.json")
    if path is None:
        config = GPT2Config.from_tensors(checker.tensors, file=checkpoint.source)
    else:
        values = read_config(path)
        config = GPT2Config.from_json(values, file=str(path))
    # The longest first, since the first that a name begins with is taken off.
    names = [seen.tensor.name for seen in checker.tensors.values()]
    outer = next(seen.tensor.name.removesuffix(name) for name, seen in checker.tensors.items())
    candidates = [outer + prefix for prefix in GPT2.rules.prefixes] + [outer]
    used = [p for p in candidates if p and any(name.startswith(p) for name in names)]
    # Those of the class too: a recording has them, whatever the file has.
    return config, tuple(dict.fromkeys([*used, *GPT2.rules.prefixes]))
