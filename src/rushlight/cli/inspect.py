"""`rushlight inspect`: the checkpoint as a tree of modules, in the terminal, as JSON or as a web page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import MODEL, OUTPUT, Debug, Offline, Revision
from rushlight.cli.terminal import out, say, show, status
from rushlight.errors import printable

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.stats import TensorStats

EXAMPLES = """
\b
Examples:
  rushlight inspect model.safetensors
  rushlight inspect openai-community/gpt2 --depth 1
  rushlight inspect ./folder --full | grep attn
  rushlight inspect model.safetensors --json | jq .n_parameters
  rushlight inspect model.safetensors --stats --html model.html
"""


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            rich_help_panel=MODEL,
            help="A .safetensors file, a folder, an index of shards, a hub id such as openai-community/gpt2, or a URL.",
        ),
    ],
    offline: Offline = False,
    revision: Revision = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", min=0, rich_help_panel=OUTPUT, help="Show N levels of the tree."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", rich_help_panel=OUTPUT, help="Show each of the equal blocks.")
    ] = False,
    with_stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            rich_help_panel=OUTPUT,
            help="Read the data: min, max, mean, std, NaN and Inf of every tensor; each block is shown.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every tensor.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", rich_help_panel=OUTPUT, help="Write a web page that needs no network instead."
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", rich_help_panel=OUTPUT, help="Show the page in the browser.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Show a checkpoint as a tree of modules.

    Only headers are read, and of a hub id or a URL only headers are fetched. Equal blocks are shown once, a tied head
    is counted once, and buffers are not counted.
    """
    from rushlight.checkpoint import open_headers
    from rushlight.inspection import module_tree

    with status(f"opening {source}"):
        checkpoint = open_headers(source, offline=offline, revision=revision)
    with checkpoint:
        tree = module_tree(checkpoint)
        stats = _measured(checkpoint) if with_stats else None
    if as_json:
        out(json.dumps(tree.to_json(stats), ensure_ascii=False) + "\n")
    if html is not None or open_page:
        from rushlight.viewer import write_page

        path = html or _page_of_its_own()
        write_page(path, tree, stats)
        say(printable(f"wrote {path}"))
        if open_page:
            _show_in_browser(path)
    elif not as_json:
        from rushlight.cli.tree_view import TreeView

        show(TreeView(tree, depth=depth, full=full, stats=stats))


def _measured(checkpoint: Checkpoint) -> dict[str, TensorStats]:
    """The statistics of all tensors, with a progress bar on stderr if a person is watching."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from rushlight.checkpoint.stats import measure
    from rushlight.cli.terminal import stderr_console

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console = stderr_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=sum(tensor.nbytes for tensor in checkpoint.values()))
        return measure(checkpoint.values(), lambda n_bytes: progress.advance(task, n_bytes))


def _page_of_its_own() -> Path:
    """A new place for a page that nobody named; it stays, since the browser may read it at any time."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="rushlight-")) / "inspect.html"


def _show_in_browser(path: Path) -> None:
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        say("no browser was found: open the page in one yourself")
