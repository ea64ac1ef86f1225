"""`rushlight convert`: pack the weights of a checkpoint once, for every later start."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from rushlight.cli.interrupt import interrupts_as_exceptions
from rushlight.cli.options import (
    MODEL,
    OUTPUT,
    Debug,
    ModelFlag,
    Offline,
    Port,
    Revision,
    Threads,
    complete_source,
    need_source,
)
from rushlight.cli.progress import progress_bar
from rushlight.cli.terminal import write_err
from rushlight.errors import printable_line, printable_name

EXAMPLES = """
\b
Examples:
  rushlight convert openai-community/gpt2 -o gpt2-int8 --dtype int8
  rushlight convert ./folder -o ./packed --dtype int4
  rushlight generate ./packed -p "Once upon a time"
"""

_STEPS = 1000
"""Of the progress bar."""


def _dtypes(incomplete: str) -> list[str]:
    from rushlight.checkpoint.packed import CONVERTED_DTYPES

    return [word for word in CONVERTED_DTYPES if word.startswith(incomplete)]


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_source,
            show_default=False,
            rich_help_panel=MODEL,
            help="A .safetensors file, a folder, a hub id, a short name such as smollm2 (see `rushlight models`), or"
            " tales, the embedded model.",
        ),
    ] = None,
    model: ModelFlag = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="The folder to write; it must not exist, or be empty.",
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAME",
            autocompletion=_dtypes,
            show_default=False,
            rich_help_panel=OUTPUT,
            help="Weights in f32, f16, bf16, int8 or int4.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace a folder that this command has written.")
    ] = False,
    threads: Threads = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    _debug: Debug = False,
) -> None:
    """Pack the weights of a checkpoint into a folder that every command opens as it opens the original.

    On device cpu, the weights of the folder are used where they lie in its file: a start packs and quantises nothing,
    and processes share the memory. Results are bit-identical to those of the original with the same --dtype. The file
    is a valid .safetensors, serves every processor, and has the same bytes each time. Licences and the files of config,
    tokenizer and chat template are copied.
    """
    import rushlight
    from rushlight.host.memory import human_bytes

    name = need_source(source, model)
    # Not ended by an interrupt in the middle: what is written so far is removed.
    with interrupts_as_exceptions(), progress_bar(f"converting to {dtype}", _STEPS) as show:
        done = rushlight.convert(
            name,
            output,
            dtype=dtype,
            threads=threads,
            offline=offline,
            revision=revision,
            port=port,
            force=force,
            progress=lambda done, total, note: show(done * _STEPS // max(total, 1), printable_name(note)),
        )
    sizes = f"{human_bytes(done.source_bytes)} to {human_bytes(done.nbytes)}"
    write_err(printable_line(f"wrote {output}: {dtype}, {sizes}"))
