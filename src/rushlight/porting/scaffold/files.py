"""The two files of a port: the model, and a test that loads a checkpoint into it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rushlight.checkpoint import display_name
from rushlight.porting.scaffold.source_text import one_line, string_literal

__all__ = ["TO_WRITE", "USAGE", "Scaffold", "port_test"]

USAGE = ("    rushlight check SOURCE --port FILE", "    rushlight generate SOURCE --port FILE -p TEXT")
"""How to run a port, for its docstring."""

TO_WRITE = "It has a slot for every tensor; complete it where it says TO WRITE."

CHECKPOINT_VARIABLE = "CHECKPOINT"
"""The environment variable that holds the checkpoint's path where a port's test cannot use a relative one."""


@dataclass(frozen=True)
class Scaffold:
    """A port's two files.

    Attributes:
        module: the source of the model.
        test: the source of its test.
        to_write: the classes whose forward is left to write.
        to_check: what the file assumes, since neither names, shapes nor config.json show it.
    """

    module: str
    test: str
    to_write: tuple[str, ...]
    to_check: tuple[str, ...] = ()


def port_test(source: str, file: Path, *, computes_logits: bool) -> str:
    """The test of a port that will be written to `file`.

    Args:
        source: the checkpoint.
        file: the port's path.
        computes_logits: whether the port is complete, so that the test can run it.
    """
    named = _source_in_test(source, file.parent)
    from_environment = CHECKPOINT_VARIABLE in named
    run = f"\n\n    {CHECKPOINT_VARIABLE}=PATH pytest {one_line(f'test_{file.name}')}\n" if from_environment else ""
    imports = "import os\n" if from_environment else ""
    logits = """

def test_it_computes_logits():
    model = rushlight.load(SOURCE, port=PORT, device="reference")
    assert model.logits([0, 1]).shape == (2, model.config.vocab_size)
"""
    return f'''"""The port in {one_line(file.name)} has a slot for every tensor of its checkpoint.{run}"""

{imports}from pathlib import Path

import rushlight

PORT = Path(__file__).with_name({string_literal(file.name)})
SOURCE = {named}


def test_every_tensor_is_loaded():
    module = rushlight.load_module(SOURCE, port=PORT, device="reference")
    assert not list(module.named_slots())
{logits if computes_logits else ""}'''


def _source_in_test(source: str, folder: Path) -> str:
    """A checkpoint's path as Python source for a test in `folder`: relative if it is near, else from the environment.

    Never an absolute path, which is useless to others and reveals the author's folders.
    """
    path = Path(source)
    if not path.exists():
        return string_literal(source)  # on the hub
    with suppress(ValueError):  # on another drive
        way = Path(os.path.relpath(path, folder)).as_posix()
        if not way.startswith("../.."):
            return f"Path(__file__).parent / {string_literal(way)}"
    name = one_line(display_name(source))
    return f'os.environ["{CHECKPOINT_VARIABLE}"]  # the path of {name}'
