"""`rushlight inspect`: show a checkpoint as a tree of modules, on a terminal, as JSON or as a web page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug, HeaderSource, ModelFlag, Offline, Revision, need_source
from rushlight.cli.progress import reading
from rushlight.cli.terminal import out_json, show, status
from rushlight.cli.web_page import Html, Open, deliver

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.stats import TensorStats

EXAMPLES = """
\b
Examples:
  rushlight inspect tales
  rushlight inspect model.safetensors
  rushlight inspect openai-community/gpt2 --depth 1
  rushlight inspect ./folder --full | grep attn
  rushlight inspect model.safetensors --json | jq .n_parameters
  rushlight inspect model.safetensors --stats --html model.html
"""


def inspect(
    source: HeaderSource = None,
    model: ModelFlag = None,
    offline: Offline = False,
    revision: Revision = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", min=0, rich_help_panel=OUTPUT, help="Show N levels of the tree."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", rich_help_panel=OUTPUT, help="Show every block instead of folding equal ones.")
    ] = False,
    with_stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            rich_help_panel=OUTPUT,
            help="Read the data and show min, max, mean, std, NaN and Inf of every tensor. Implies --full.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every tensor.")
    ] = False,
    html: Html = None,
    open_page: Open = False,
    _debug: Debug = False,
) -> None:
    """Show a checkpoint as a tree of modules.

    Reads only headers: from the hub or a URL, no weights are downloaded. Equal blocks are shown once, a tied head is
    counted once, and buffers are not counted.
    """
    from rushlight.checkpoint import open_headers
    from rushlight.loading.inspection import module_tree
    from rushlight.models.tied import tied_heads

    name = need_source(source, model)
    with status(f"opening {name}"):
        checkpoint = open_headers(name, offline=offline, revision=revision, allow_missing=tied_heads)
    with checkpoint:
        tree = module_tree(checkpoint)
        stats = _measured(checkpoint) if with_stats else None
    if as_json:
        out_json(tree.to_json(stats))
    if html is not None or open_page:
        from rushlight.viewer import tree_page

        deliver(tree_page(tree, stats), html, open_page=open_page)
    elif not as_json:
        from rushlight.cli.views.tree import TreeView

        show(TreeView(tree, depth=depth, full=full, stats=stats))


def _measured(checkpoint: Checkpoint) -> dict[str, TensorStats]:
    """The statistics of all tensors, with a progress bar on stderr if it is a terminal."""
    from rushlight.checkpoint.stats import measure

    with reading(sum(tensor.nbytes for tensor in checkpoint.values())) as advance:
        return measure(checkpoint.values(), advance)
