"""`rushlight lens`: show the next-token predictions of every block, as a table, JSON or a web page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rushlight.cli.loading import load_model, load_options
from rushlight.cli.options import INPUT, OUTPUT, Debug, ModelFlag, Source, model_and_prompt
from rushlight.cli.terminal import note, out_json, show, status, stdout_console
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
"""Width of a cell: a token and its probability."""


@load_options(without=("draft",))
def lens(
    source: Source = None,
    argument: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", rich_help_panel=INPUT, help="The same as --prompt. With -m, it is the only argument."
        ),
    ] = None,
    model: ModelFlag = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", rich_help_panel=INPUT, help="The prompt."),
    ] = None,
    *,
    load_with: dict[str, Any],
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            metavar="N",
            min=1,
            rich_help_panel=OUTPUT,
            help="Show the last N positions. Default: all, or on a terminal as many as fit.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", metavar="K", min=1, rich_help_panel=OUTPUT, help="Tokens per cell in JSON and the web page."
        ),
    ] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object instead.")
    ] = False,
    html: Html = None,
    open_page: Open = False,
    _debug: Debug = False,
) -> None:
    """Show the next-token predictions of every block: the logit lens.

    Rows are blocks, the last one with the model's own prediction; columns are the tokens of the prompt. Each cell shows
    the most likely next token and its probability in percent. The model of a --port needs a method readout, its final
    norm and head, as `rushlight port` writes it.
    """
    from rushlight.runtime.lens import lens as compute_lens

    name, prompt = model_and_prompt(source, argument, model, prompt)
    if prompt is None:
        raise typer.BadParameter("no prompt given; write it after SOURCE, or with -p", param_hint="--prompt")
    loaded = load_model(name, load_with)
    wants_page = html is not None or open_page
    fitting = None if as_json or wants_page or not sys.stdout.isatty() else _columns_that_fit(loaded)
    with status("computing"):
        result = compute_lens(loaded, prompt, last=last or fitting, top_k=top)
    if as_json:
        out_json(_record(loaded, result))
    if wants_page:
        from rushlight.viewer import render_page

        deliver(render_page("lens", f"{loaded.name}: logit lens", _record(loaded, result)), html, open_page=open_page)
    elif not as_json:
        if result.first and last is None:
            n_tokens = len(result.prompt_ids)
            note(f"showing the last {n_tokens - result.first} of {n_tokens} tokens; use --last or --html to see more")
        show(_table(loaded, result))


def _columns_that_fit(model: Model) -> int:
    """The number of positions that fit the terminal, next to the names of the blocks."""
    names = max((len(path) for path, _ in model.module.named_modules() if path.count(".") == 1), default=0)
    return max(1, (stdout_console().width - names) // (CELL + 2))


def _record(model: Model, result: Lens) -> dict[str, Any]:
    """The data of `--json` and the web page."""
    shown = result.prompt_ids[result.first :]
    return {
        "model": model.name,
        "first": result.first,
        "tokens": [{"id": token, "text": _text(model, result, i, token)} for i, token in enumerate(shown)],
        "blocks": [
            {
                "path": path,
                "top": [
                    [
                        {"id": int(token), "text": _text(model, result, at + 1, int(token)), "p": round(float(p), 6)}
                        for token, p in zip(*cell, strict=True)
                    ]
                    for at, cell in enumerate(zip(result.top_ids[i], result.top_probabilities[i], strict=True))
                ],
            }
            for i, path in enumerate(result.blocks)
        ],
    }


def _table(model: Model, result: Lens) -> Table:
    """A row per block, a column per position: the most likely next token and its probability."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for i, token in enumerate(result.prompt_ids[result.first :]):
        table.add_column(Text(_fitted(_text(model, result, i, token), CELL), style="bold"), width=CELL, no_wrap=True)
    for path, ids, probabilities in zip(result.blocks, result.top_ids, result.top_probabilities, strict=True):
        cells = [
            Text(
                f"{_padded(_text(model, result, i + 1, int(token[0])), CELL - 4)} {100 * p[0]:3.0f}", style=_style(p[0])
            )
            for i, (token, p) in enumerate(zip(ids, probabilities, strict=True))
        ]
        table.add_row(path, *cells)
    return table


def _style(p: float) -> str:
    """A brighter style for a higher probability."""
    return "dim" if p < 0.1 else "" if p < 0.5 else "green" if p < 0.9 else "bold green"


def _text(model: Model, result: Lens, i: int, token: int) -> str:
    """A token at the i-th shown position, with visible white space; its id if there is no tokenizer."""
    from rushlight.text.stream import WINDOW_TOKENS

    if model.tokenizer is None or not model.tokenizer.has_token(token):
        return f"#{token}"
    at = result.first + i
    text = model.tokenizer.decode([token], before=result.prompt_ids[max(0, at - WINDOW_TOKENS) : at])
    return printable(text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥"))


def _fitted(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _padded(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(_fitted(text, width), width)
