"""`rushlight inspect`: show a checkpoint as a tree of modules, on a terminal, as JSON or as a web page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import OUTPUT, Debug, HeaderSource, ModelFlag, Offline, Revision, need_source
from rushlight.cli.progress import reading
from rushlight.cli.terminal import columns, note, out, out_json, show, status
from rushlight.cli.web_page import Html, Open, deliver
from rushlight.errors import printable_line

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.stats import TensorStats
    from rushlight.loading.footprint import Footprint

EXAMPLES = """
\b
Examples:
  rushlight inspect tales
  rushlight inspect model.safetensors
  rushlight inspect qwen3:4b --depth 1
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
    from rushlight.loading.footprint import footprint
    from rushlight.loading.inspection import module_tree
    from rushlight.loading.near_types import why_not
    from rushlight.models.tied import tied_heads

    name = need_source(source, model)
    with status(f"opening {name}"):
        checkpoint = open_headers(name, offline=offline, revision=revision, allow_missing=tied_heads)
    with checkpoint:
        tree = module_tree(checkpoint)
        needed, reason = footprint(checkpoint), why_not(checkpoint)
        stats = _measured(checkpoint) if with_stats else None
    if as_json:
        out_json(tree.to_json(stats) | {"memory": needed and _memory(needed)})
    if html is not None or open_page:
        from rushlight.viewer import tree_page

        deliver(tree_page(tree, stats), html, open_page=open_page)
    elif not as_json:
        from rushlight.cli.views.tree import TreeView

        show(TreeView(tree, depth=depth, full=full, stats=stats))
        if needed is not None:
            _show_needs(needed)
        elif reason:
            note(printable_line(reason))


def _show_needs(needed: Footprint) -> None:
    """Prints what the model needs, and on stderr whether that is too much for this machine."""
    from rushlight.cli.word_wrap import wrapped
    from rushlight.host.memory import available_bytes

    text = f"memory: {needed.describe()}"
    out(f"\n{wrapped(text, columns(sys.stdout)) if sys.stdout.isatty() else text}\n")
    have_bytes = available_bytes()
    if needed.fitting(have_bytes) != needed.stored:
        note(needed.describe_fit(have_bytes))


def _memory(needed: Footprint) -> dict[str, object]:
    tokens = dict.fromkeys((needed.tokens, needed.context_length))
    return {
        "stored": needed.stored,
        "weight_bytes": dict(needed.weight_bytes),
        "kv_bytes": {str(n): needed.kv_bytes(needed.stored, n) for n in tokens},
        "context_length": needed.context_length,
    }


def _measured(checkpoint: Checkpoint) -> dict[str, TensorStats]:
    """The statistics of all tensors, with a progress bar on stderr if it is a terminal."""
    from rushlight.checkpoint.stats import measure

    with reading(sum(tensor.nbytes for tensor in checkpoint.values())) as advance:
        return measure(checkpoint.values(), advance)
