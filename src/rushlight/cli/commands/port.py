"""`rushlight port`: write a model file to begin a port with, and a test that binds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug, HeaderSource, ModelFlag, Offline, Revision, need_source
from rushlight.cli.terminal import out, say, status
from rushlight.errors import PortError, first_ten, printable_line
from rushlight.files.atomic import atomic_write

EXAMPLES = """
\b
Examples:
  rushlight port model.safetensors -o my_model.py
  rushlight port openai-community/gpt2 -o my_gpt2.py
  rushlight port ./folder -o - | less
  rushlight generate ./folder --port my_model.py -p "Dear"
"""


def port(
    source: HeaderSource = None,
    model: ModelFlag = None,
    *,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="The Python file to write; its test is written beside it. - prints the file.",
        ),
    ],
    offline: Offline = False,
    revision: Revision = None,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Write over files that are there.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Write a model file under a checkpoint's own names: to load it with --port, and to complete.

    Only headers are read. Layers are guessed from names and shapes. For a GPT-2 the file is whole; for another model
    it says where the forward is to be written.
    """
    from rushlight.checkpoint import open_headers
    from rushlight.models.tied import tied_heads
    from rushlight.porting.scaffold.port import scaffold

    name = need_source(source, model)
    module = Path("my_model.py" if output == "-" else output)
    test = module.with_name(f"test_{module.name}")
    if module.suffix != ".py":
        raise typer.BadParameter(f"{output!r} is no Python file: end it in .py", param_hint="--output")
    there = [str(path) for path in (module, test) if path.exists()]
    if there and output != "-" and not force:
        raise PortError(
            f"{' and '.join(there)} would be written over", remedy="name another file, or give --force if that is meant"
        )
    with status(f"opening {name}"):
        checkpoint = open_headers(name, offline=offline, revision=revision, allow_missing=tied_heads)
    with checkpoint:
        written = scaffold(checkpoint, module)
    if output == "-":
        out(written.module)
        return
    for path, text in ((module, written.module), (test, written.test)):
        atomic_write(path, text.encode())
    say(printable_line(f"wrote {module} and {test}"))
    if written.to_write:
        names = ", ".join(first_ten(written.to_write))
        say(f"every tensor has its place; what these compute is to be written: {names}")
