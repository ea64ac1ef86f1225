"""`rushlight lens`: what each block of a model would say next, as a table or as a web page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

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
    Revision,
    Source,
    Threads,
    model_and_prompt,
)
from rushlight.cli.terminal import out_json, say_wrapped, show, status, stdout_console
from rushlight.cli.web_page import Html, Open, deliver
from rushlight.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from rushlight.runtime.lens import Lens
    from rushlight.runtime.model import Model

EXAMPLES = """
\b
Examples:
  rushlight lens -p "Once upon a time there was a"
  rushlight lens openai-community/gpt2 "The capital of France is" --last 3
  rushlight lens ./folder -p "Two and two is" --html lens.html --open
  rushlight lens gpt2 -p "Hello" --top 3 --json | jq '.blocks[-1]'
"""

CELL = 14
"""Columns of a cell: a token and its probability."""


def lens(
    source: Source = None,
    words: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", rich_help_panel=TEXT, help="The same as --prompt. Beside -m, the only argument."
        ),
    ] = None,
    model: ModelFlag = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", rich_help_panel=TEXT, help="What to read."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    exact: Exact = None,
    offline: Offline = False,
    revision: Revision = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            metavar="N",
            min=1,
            rich_help_panel=OUTPUT,
            help="Show the last N positions. Without it: all, in a terminal as many as fit.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="K", min=1, rich_help_panel=OUTPUT, help="Tokens a cell in JSON and page.")
    ] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object instead.")
    ] = False,
    html: Html = None,
    open_page: Open = False,
    _debug: Debug = False,
) -> None:
    """Show what each block of a model would say next, if it were the last: the logit lens.

    A row for each block, the last one's being what the model says; a column for each token of the prompt; in a cell the
    likeliest token to follow, and its probability in percent.
    """
    import rushlight
    from rushlight.runtime.lens import lens as look

    name, prompt = model_and_prompt(source, words, model, prompt)
    if prompt is None:
        raise typer.BadParameter("none was given; write it after SOURCE, or with -p", param_hint="--prompt")
    with status(f"loading {name or 'the embedded model'}"):
        loaded = rushlight.load(
            name, device=device, dtype=dtype, threads=threads, exact=exact, offline=offline, revision=revision
        )
    wants_page = html is not None or open_page
    fitting = None if as_json or wants_page or not sys.stdout.isatty() else _columns_that_fit(loaded)
    with status("reading"):
        seen = look(loaded, prompt, last=last or fitting, top_k=top)
    if as_json:
        out_json(_record(loaded, seen))
    if wants_page:
        from rushlight.viewer import render_page

        deliver(render_page("lens", f"{loaded.name}: logit lens", _record(loaded, seen)), html, open_page=open_page)
    elif not as_json:
        if seen.first and last is None:
            n_tokens = len(seen.prompt_ids)
            say_wrapped(f"note: the last {n_tokens - seen.first} of {n_tokens} tokens; --last or --html shows more")
        show(_table(loaded, seen))


def _columns_that_fit(model: Model) -> int:
    """Positions that fit the terminal beside the names of the blocks."""
    names = max((len(path) for path, _ in model.module.named_modules() if path.count(".") == 1), default=0)
    return max(1, (stdout_console().width - names) // (CELL + 2))


def _record(model: Model, seen: Lens) -> dict[str, Any]:
    """What `--json` prints and the page draws."""
    shown = seen.prompt_ids[seen.first :]
    return {
        "model": model.name,
        "first": seen.first,
        "tokens": [{"id": token, "text": _text(model, seen, i, token)} for i, token in enumerate(shown)],
        "blocks": [
            {
                "path": path,
                "top": [
                    [
                        {"id": int(token), "text": _text(model, seen, at + 1, int(token)), "p": round(float(p), 6)}
                        for token, p in zip(*cell, strict=True)
                    ]
                    for at, cell in enumerate(zip(seen.top_ids[i], seen.top_probabilities[i], strict=True))
                ],
            }
            for i, path in enumerate(seen.blocks)
        ],
    }


def _table(model: Model, seen: Lens) -> Table:
    """A row a block, a column a position: what is likeliest next, and how likely."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for i, token in enumerate(seen.prompt_ids[seen.first :]):
        table.add_column(Text(_fitted(_text(model, seen, i, token), CELL), style="bold"), width=CELL, no_wrap=True)
    for path, ids, probabilities in zip(seen.blocks, seen.top_ids, seen.top_probabilities, strict=True):
        cells = [
            Text(f"{_padded(_text(model, seen, i + 1, int(token[0])), CELL - 4)} {100 * p[0]:3.0f}", style=_style(p[0]))
            for i, (token, p) in enumerate(zip(ids, probabilities, strict=True))
        ]
        table.add_row(path, *cells)
    return table


def _style(p: float) -> str:
    """Surer is brighter."""
    return "dim" if p < 0.1 else "" if p < 0.5 else "green" if p < 0.9 else "bold green"


def _text(model: Model, seen: Lens, i: int, token: int) -> str:
    """A token at the i-th position shown: white space made visible, or its number where there is no tokenizer."""
    from rushlight.text.stream import WINDOW_TOKENS

    if model.tokenizer is None or not model.tokenizer.has_token(token):
        return f"#{token}"
    at = seen.first + i
    text = model.tokenizer.decode([token], before=seen.prompt_ids[max(0, at - WINDOW_TOKENS) : at])
    return printable(text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥"))


def _fitted(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _padded(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(_fitted(text, width), width)
