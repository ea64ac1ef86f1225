"""Looking into a checkpoint: its module tree, with what is known of its architecture."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rushlight.checkpoint import open_headers
from rushlight.checkpoint.tree import ModuleTree
from rushlight.models import recognise
from rushlight.models.tied import tied_by_config, tied_heads

if TYPE_CHECKING:
    import os

    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.tree import Mark
    from rushlight.nn import NameRules

__all__ = ["inspect", "module_tree"]

_log = logging.getLogger("rushlight")


def inspect(source: str | os.PathLike[str], *, offline: bool = False, revision: str | None = None) -> ModuleTree:
    """The module tree of a checkpoint, read from its headers.

    Args:
        source: a `.safetensors` file, a folder, a `model.safetensors.index.json`, `tales`, a hub id such as
            `openai-community/gpt2`, or the https:// URL of a file or index. What is elsewhere is not downloaded: its
            headers are fetched and nothing more.
        offline: ask nothing of the network; the hub's cache must have it.
        revision: the branch, tag or commit of a hub id.

    Raises:
        SourceError: the source leads to no checkpoint.
        CheckpointError: a file is not sound safetensors, or index and files disagree.
    """
    with open_headers(source, offline=offline, revision=revision, allow_missing=tied_heads) as checkpoint:
        return module_tree(checkpoint)


def module_tree(checkpoint: Checkpoint) -> ModuleTree:
    """The module tree of an open checkpoint; tensors that are tied or buffers of a known architecture are marked."""
    architecture = recognise(checkpoint)
    return ModuleTree.build(
        ((tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in checkpoint.values()),
        source=checkpoint.source,
        files=checkpoint.file_names,
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
            tied = tied_by_config(checkpoint)
            if tied is None and checkpoint.is_remote:
                _log.warning(
                    "whether %s is tied is not known without config.json or the data: it is counted", names[head]
                )
                continue
            if checkpoint[names[head]].same_data(checkpoint[names[table]]) if tied is None else tied:
                marks[names[head]] = "tied"
    return marks
