"""`rushlight record`: what PyTorch computes, module by module, in a file that is verified without it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import MODEL, OUTPUT, TEXT, Debug, ModelFlag, Offline, Revision, complete_source, need_source
from rushlight.cli.terminal import say, status
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
    typer.Option("--text", metavar="TEXT", rich_help_panel=TEXT, help="A prompt to record; may be given again."),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--ids", metavar="IDS", rich_help_panel=TEXT, help="A prompt as token ids, such as 464,3290."),
]


def record(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_source,
            show_default=False,
            rich_help_panel=MODEL,
            help="A folder as transformers has it, tales (the embedded model), or a hub id.",
        ),
    ] = None,
    model: ModelFlag = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default=False, rich_help_panel=OUTPUT, help="Where to write it."
        ),
    ],
    text: Texts = None,
    ids: Ids = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", metavar="N", min=0, rich_help_panel=TEXT, help="Record N greedy tokens.")
    ] = 20,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAME",
            rich_help_panel=MODEL,
            help="What PyTorch computes in: float32, bfloat16, float16.",
        ),
    ] = "float32",
    offline: Offline = False,
    revision: Revision = None,
    _debug: Debug = False,
) -> None:
    """Record what transformers computes, for `verify` on a machine without PyTorch.

    Needs the [proof] extra. Each module's input and output, the logits and greedy tokens are kept, with the digests of
    the weights. Without --text and --ids: two short texts.
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
    say(printable_line(f"wrote {output}: {n} prompt{'s' if n > 1 else ''}, {modules} modules of {golden.model}"))


def parse_ids(given: Sequence[str] | None) -> list[list[int]]:
    """The prompts of `--ids`: numbers with commas or spaces between.

    Raises:
        typer.BadParameter: one holds something else, or nothing.
    """
    prompts = []
    for text in given or ():
        words = text.replace(",", " ").split()
        if not words or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
            raise typer.BadParameter(f"{text!r} is not a list of token ids, as in 464,3290", param_hint="--ids")
        prompts.append([int(word) for word in words])
    return prompts
