"""`rushlight inspect`: the checkpoint as a tree of modules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.options import MODEL, OUTPUT, Debug, Offline, Revision
from rushlight.cli.terminal import out, show, status

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.tree import Mark, ModuleTree
    from rushlight.nn import NameRules

EXAMPLES = """
\b
Examples:
  rushlight inspect model.safetensors
  rushlight inspect openai-community/gpt2 --depth 1
  rushlight inspect ./folder --full | grep attn
  rushlight inspect model.safetensors --json | jq .n_parameters
"""


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            rich_help_panel=MODEL,
            help="A .safetensors file, a folder, an index of shards, or a hub id such as openai-community/gpt2.",
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
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with every tensor.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Show a checkpoint as a tree of modules.

    Only headers are read. Equal blocks are shown once, a tied head is counted once, and buffers are not counted.
    """
    with status(f"opening {source}"):
        tree = module_tree(source, offline=offline, revision=revision)
    if as_json:
        out(json.dumps(tree.to_json(), ensure_ascii=False) + "\n")
        return
    from rushlight.cli.tree_view import TreeView

    show(TreeView(tree, depth=depth, full=full))


MAX_CONFIG_BYTES = 2**20


def module_tree(source: str, *, offline: bool = False, revision: str | None = None) -> ModuleTree:
    """The module tree of a checkpoint, read from its headers, with what is known of its architecture."""
    from rushlight.checkpoint import open_checkpoint
    from rushlight.checkpoint.tree import ModuleTree
    from rushlight.models import recognise

    with open_checkpoint(source, offline=offline, revision=revision) as checkpoint:
        architecture = recognise(checkpoint)
        return ModuleTree.build(
            ((tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in checkpoint.values()),
            source=checkpoint.source,
            files=[path.name for path in checkpoint.files],
            metadata=checkpoint.metadata,
            architecture=architecture.model_type if architecture else None,
            marks=_marks(checkpoint, architecture.rules) if architecture else None,
        )


def _marks(checkpoint: Checkpoint, rules: NameRules) -> dict[str, Mark]:
    """The tensors that do not count. A head is tied if config.json says so; without one, if it is the table's copy."""
    marks: dict[str, Mark] = {name: "buffer" for name in checkpoint if rules.ignored(name)}
    names = {rules.canonical(name): name for name in checkpoint}
    for head, table in rules.tied.items():
        if head in names and table in names:
            told = _tied_by_config(checkpoint)
            if checkpoint[names[head]].same_data(checkpoint[names[table]]) if told is None else told:
                marks[names[head]] = "tied"
    return marks


def _tied_by_config(checkpoint: Checkpoint) -> bool | None:
    """What config.json says, by a word or by saying nothing; None without one, or with one that only a load refuses."""
    from rushlight.checkpoint import read_json_object
    from rushlight.errors import ConfigError

    path = checkpoint.sidecar("config.json")
    if path is None:
        return None
    try:
        told = read_json_object(path, max_bytes=MAX_CONFIG_BYTES, error=ConfigError).get("tie_word_embeddings", True)
    except ConfigError:
        return None
    return told if isinstance(told, bool) else None
