"""`rushlight port`: write a scaffold of a model file, and a test for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug, HeaderSource, ModelFlag, Offline, Revision, need_source
from rushlight.cli.terminal import out, status, write_err
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
            help="The Python file to write; its test is written next to it. - prints the file.",
        ),
    ],
    offline: Offline = False,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Overwrite existing files.")] = False,
    _debug: Debug = False,
) -> None:
    """Write a model file from a checkpoint's tensor names, to complete and load with --port.

    Reads only headers, and infers layers from names and shapes. For a known architecture the file is complete. For a
    decoder of a known form it is complete, too, and what it assumes is listed; for others it marks where to write the
    forward.
    """
    from rushlight.checkpoint import open_headers
    from rushlight.models.tied import tied_heads
    from rushlight.porting.scaffold.port import scaffold

    name = need_source(source, model)
    module = Path("my_model.py" if output == "-" else output)
    test = module.with_name(f"test_{module.name}")
    if module.suffix != ".py":
        raise typer.BadParameter(f"output must end in .py, found {output!r}", param_hint="--output")
    existing = [str(path) for path in (module, test) if path.exists()]
    if existing and output != "-" and not force:
        raise PortError(f"refusing to overwrite {' and '.join(existing)}", remedy="choose another file, or use --force")
    with status(f"opening {name}"):
        checkpoint = open_headers(name, offline=offline, revision=revision, allow_missing=tied_heads)
    with checkpoint:
        written = scaffold(checkpoint, module)
    if output == "-":
        out(written.module)
        return
    for path, text in ((module, written.module), (test, written.test)):
        atomic_write(path, text.encode())
    write_err(printable_line(f"wrote {module} and {test}"))
    if written.to_write:
        names = ", ".join(first_ten(written.to_write))
        write_err(f"all tensors are bound; now write the forward of: {names}")
    if written.to_check:
        write_err("it assumes, in the lines marked Assumed:")
        for each in written.to_check:
            write_err(printable_line(f"  {each}"))
        write_err(f"check with: rushlight record {name} -o golden.safetensors, then verify {name} --port {module}")
