"""`rushlight eval`: measure the perplexity of a text."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.loading import load_model, load_options
from rushlight.cli.options import INPUT, OUTPUT, Debug, ModelFlag, Source, one_of
from rushlight.cli.progress import progress_bar
from rushlight.cli.terminal import out, out_json

if TYPE_CHECKING:
    from rushlight.generation import Perplexity

EXAMPLES = """
\b
Examples:
  rushlight eval --text chapter.txt
  rushlight eval openai-community/gpt2 --text wikitext-2.txt --stride 512
  rushlight eval ./folder --dtype int8 --text a.txt --json | jq .perplexity
  zcat corpus.txt.gz | rushlight eval gpt2 --text -
"""


@load_options(without=("draft",))
def evaluate(
    source: Source = None,
    model: ModelFlag = None,
    *,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE", rich_help_panel=INPUT, help="A UTF-8 text file; - is stdin."),
    ],
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            rich_help_panel=INPUT,
            help="Tokens from one window to the next. Default: 512, or the window if that is shorter.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="N", rich_help_panel=INPUT, help="Tokens per window. Default: the context length."
        ),
    ] = None,
    load_with: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object on stdout.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Measure the perplexity of a text with sliding windows.

    Follows transformers' guide "Perplexity of fixed-length models". The text may have any length.
    """
    from rushlight.text.chunks import read_chunks

    name = one_of(source, model)
    if text == "-" and sys.stdin is None:
        raise typer.BadParameter("stdin is closed", param_hint="--text")
    with sys.stdin.buffer if text == "-" else Path(text).open("rb") as file:
        total = None if text == "-" else os.fstat(file.fileno()).st_size
        loaded = load_model(name, load_with)
        with progress_bar("eval", total) as update:

            def show(so_far: Perplexity) -> None:
                update(so_far.n_bytes or 0, f"perplexity {so_far.perplexity:,.3f}  {so_far.tok_s:,.0f} tok/s")

            pieces = read_chunks(file, "standard input" if text == "-" else text)
            result = loaded.perplexity(pieces, window=window, stride=stride, progress=show)

    if as_json:
        out_json({"model": loaded.name, "dtype": loaded.dtype, "text": text} | _record(result))
    else:
        out(_table(result))


def _record(result: Perplexity) -> dict[str, float | None]:
    return {
        "nll": result.nll,
        "perplexity": _finite(result.perplexity),
        "guide_perplexity": _finite(result.guide_perplexity),
        "bits_per_byte": result.bits_per_byte,
        "nll_sum": result.nll_sum,
        "tokens": result.n_ids,
        "scored_tokens": result.n_scored,
        "bytes": result.n_bytes,
        "window": result.window,
        "stride": result.stride,
        "windows": result.n_windows,
        "elapsed_s": result.elapsed_s,
        "tok_s": result.tok_s,
    }


def _finite(value: float) -> float | None:
    """The value; None if JSON cannot represent it."""
    return value if math.isfinite(value) else None


def _table(result: Perplexity) -> str:
    rows = [
        ("perplexity", f"{result.perplexity:,.4f}"),
        ("guide's example", f"{result.guide_perplexity:,.4f}"),
        ("nll", f"{result.nll:.6f} nats per token"),
        ("bits per byte", f"{result.bits_per_byte:.6f}"),
        ("tokens", f"{result.n_ids:,} in {result.n_bytes:,} bytes"),
        ("windows", f"{result.n_windows:,} of {result.window:,} tokens, stride {result.stride:,}"),
        ("speed", f"{result.tok_s:,.0f} tok/s"),
    ]
    return "".join(f"{name:<16} {value}\n" for name, value in rows)
