"""`rushlight eval`: the perplexity of a text."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import (
    OUTPUT,
    TEXT,
    Debug,
    Device,
    Dtype,
    Exact,
    ModelFlag,
    Offline,
    Port,
    Revision,
    Source,
    Threads,
    one_of,
)
from rushlight.cli.progress import progress_bar
from rushlight.cli.terminal import out, out_json, status

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


def evaluate(
    source: Source = None,
    model: ModelFlag = None,
    *,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE", rich_help_panel=TEXT, help="The UTF-8 text to predict; - is stdin."),
    ],
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            rich_help_panel=TEXT,
            help="Tokens from one window to the next. Without it: 512, or the window.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="N", rich_help_panel=TEXT, help="Tokens in a window. Without it: the model's context."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    exact: Exact = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object on stdout.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Measure how well a model predicts a text: its perplexity, by windows that slide over it.

    The figures are those of transformers' guide "Perplexity of fixed-length models". The text may be of any length.
    """
    import rushlight
    from rushlight.text.chunks import read_chunks

    name = one_of(source, model)
    if text == "-" and sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint="--text")
    with sys.stdin.buffer if text == "-" else Path(text).open("rb") as file:
        total = None if text == "-" else os.fstat(file.fileno()).st_size
        with status(f"loading {name or 'the embedded model'}"):
            loaded = rushlight.load(
                name,
                device=device,
                dtype=dtype,
                threads=threads,
                exact=exact,
                offline=offline,
                revision=revision,
                port=port,
            )
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
    """The value; None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _table(result: Perplexity) -> str:
    rows = [
        ("perplexity", f"{result.perplexity:,.4f}"),
        ("as in the guide", f"{result.guide_perplexity:,.4f}"),
        ("nll", f"{result.nll:.6f} nats a token"),
        ("bits per byte", f"{result.bits_per_byte:.6f}"),
        ("tokens", f"{result.n_ids:,} in {result.n_bytes:,} bytes"),
        ("windows", f"{result.n_windows:,} of {result.window:,} tokens, every {result.stride:,}"),
        ("speed", f"{result.tok_s:,.0f} tok/s"),
    ]
    return "".join(f"{what:<16} {value}\n" for what, value in rows)
