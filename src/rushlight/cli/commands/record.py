"""`rushlight record`: record the outputs of every PyTorch module, to verify a port without PyTorch."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    Debug,
    ModelFlag,
    Offline,
    Revision,
    complete_source,
    need_source,
)
from rushlight.cli.terminal import status, write_err
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """
\b
Examples:
  rushlight record openai-community/gpt2 -o golden.safetensors
  rushlight record ./folder -o golden.safetensors --text "Once upon a time"
  rushlight record ./folder -o golden.safetensors --ids 464,3290 --tokens 0
  rushlight verify ./folder --golden golden.safetensors
"""

Texts = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="TEXT", rich_help_panel=INPUT, help="A prompt. Repeatable."),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--ids", metavar="IDS", rich_help_panel=INPUT, help="A prompt as token ids, such as 464,3290. Repeatable."
    ),
]


def record(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_source,
            show_default=False,
            rich_help_panel=MODEL,
            help="A folder that transformers can load, a hub id, or tales, the embedded model.",
        ),
    ] = None,
    model: ModelFlag = None,
    *,
    text: Texts = None,
    ids: Ids = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens", "-n", metavar="N", min=0, rich_help_panel=INPUT, help="Record N greedily decoded tokens."
        ),
    ] = 20,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAME",
            rich_help_panel=MODEL,
            help="The dtype PyTorch computes in: float32, float64, bfloat16 or float16.",
        ),
    ] = "float32",
    offline: Offline = False,
    revision: Revision = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, rich_help_panel=OUTPUT, help="The file to write."
        ),
    ],
    _debug: Debug = False,
) -> None:
    """Record the module outputs of transformers, to verify a port without PyTorch.

    Needs the [proof] extra. Records the inputs and outputs of every module, the logits, greedily decoded tokens, and
    the digests of the weights. Default prompts: two short texts.
    """
    from rushlight.proof.record import write_golden
    from rushlight.proof.record_source import record_source

    name = need_source(source, model)
    prompts = parse_ids(ids)
    with status(f"recording {name}"):
        golden = record_source(
            name, texts=text or (), ids=prompts, dtype=dtype, greedy=tokens, offline=offline, revision=revision
        )
    write_golden(golden, output)
    n = len(golden.cases)
    modules = len(golden.cases[0].calls)
    write_err(printable_line(f"wrote {output}: {n} prompt{'s' if n > 1 else ''}, {modules} modules of {golden.model}"))


def parse_ids(given: Sequence[str] | None) -> list[list[int]]:
    """The prompts of `--ids`: numbers separated by commas or spaces.

    Raises:
        typer.BadParameter: a prompt is empty or has anything else.
    """
    prompts = []
    for text in given or ():
        words = text.replace(",", " ").split()
        if not words or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
            raise typer.BadParameter(f"expected token ids such as 464,3290, found {text!r}", param_hint="--ids")
        prompts.append([int(word) for word in words])
    return prompts
