"""Builds the module tree of a checkpoint from its headers, and marks tied tensors and buffers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rushlight.checkpoint import open_headers
from rushlight.checkpoint.tree import ModuleTree
from rushlight.models.recognition import architecture_of
from rushlight.models.tied import tied_by_config, tied_heads

if TYPE_CHECKING:
    import os

    from rushlight.checkpoint import Checkpoint
    from rushlight.checkpoint.tree import Mark
    from rushlight.models import Architecture

__all__ = ["inspect", "module_tree"]

_log = logging.getLogger("rushlight")


def inspect(source: str | os.PathLike[str], *, offline: bool = False, revision: str | None = None) -> ModuleTree:
    """The module tree of a checkpoint, read from its headers.

    Args:
        source: a `.safetensors` file, a folder, a `model.safetensors.index.json`, `tales`, a hub id such as
            `openai-community/gpt2`, or the https:// URL of a file or index. Of remote files only the headers are
            fetched.
        offline: do not use the network; the hub's cache must hold the files.
        revision: the branch, tag or commit of a hub id.

    Raises:
        SourceError: the source does not lead to a checkpoint.
        CheckpointError: a file is not valid safetensors, or index and files disagree.
    """
    with open_headers(source, offline=offline, revision=revision, allow_missing=tied_heads) as checkpoint:
        return module_tree(checkpoint)


def module_tree(checkpoint: Checkpoint) -> ModuleTree:
    """The module tree of an open checkpoint; tied tensors and buffers of a known architecture are marked."""
    architecture = architecture_of(checkpoint)
    return ModuleTree.build(
        ((tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in checkpoint.values()),
        source=checkpoint.source,
        files=checkpoint.file_names,
        metadata=checkpoint.metadata,
        architecture=architecture.model_type if architecture else None,
        marks=_marks(checkpoint, architecture) if architecture else None,
    )


def _marks(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Mark]:
    """Marks the tensors that are not parameters. Without a config.json, a head that equals its table is tied."""
    rules = architecture.rules
    marks: dict[str, Mark] = {name: "buffer" for name in checkpoint if rules.is_buffer(name)}
    names = {rules.canonical(name): name for name in checkpoint}
    for head, table in rules.tied.items():
        if head in names and table in names:
            tied = tied_by_config(checkpoint, architecture)
            if tied is None and checkpoint.is_remote:
                _log.warning(
                    "%s may be tied, which only config.json or the data would show: counted as parameters", names[head]
                )
                continue
            if checkpoint[names[head]].same_data(checkpoint[names[table]]) if tied is None else tied:
                marks[names[head]] = "tied"
    return marks
