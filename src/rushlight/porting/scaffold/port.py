"""Scaffolds a port: a Python file with the model under a checkpoint's own names, and a test that loads it.

For a built-in architecture it is the architecture's own file, fitted to the checkpoint. For any other model it has a
module for every module of the checkpoint, with the layers that names and shapes show; their forward is left to write.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.errors import PortError
from rushlight.porting.check.checker import Checker
from rushlight.porting.check.names import find_architecture
from rushlight.porting.scaffold.built_in import MismatchError, layer_changes, port_of_built_in
from rushlight.porting.scaffold.files import Scaffold, port_test
from rushlight.porting.scaffold.writer import Writer

if TYPE_CHECKING:
    import os

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture

__all__ = ["scaffold"]


def scaffold(checkpoint: Checkpoint, file: str | os.PathLike[str] = "my_model.py") -> Scaffold:
    """Writes a port of a checkpoint from its headers and its config.json.

    Args:
        checkpoint: an open checkpoint.
        file: the path that the module will have, for its test.

    Raises:
        PortError: the checkpoint is empty, or its names cannot be attributes of a module, or it has the names of a
            built-in architecture and does not match its config.
        ConfigError: the config.json of a built-in architecture is invalid.
    """
    if not checkpoint:
        raise PortError("the checkpoint has no tensors to write a port for", file=checkpoint.source)
    path = Path(file)
    module = _built_in(checkpoint)
    if module is None:
        return Writer(checkpoint).scaffold(path)
    return Scaffold(module, port_test(checkpoint.source, path, computes_logits=True), ())


def _built_in(checkpoint: Checkpoint) -> str | None:
    """The port of a checkpoint of a built-in architecture; None for any other checkpoint, and for variants of one."""
    checker = Checker(checkpoint, readable=False)
    architecture = find_architecture(checker)
    if architecture is None:
        return None
    prefixes = _prefixes(checker, architecture)
    rules = replace(architecture.rules, prefixes=prefixes)
    shapes = {
        rules.canonical(tensor.name): tensor.shape for tensor in checkpoint.values() if not rules.ignored(tensor.name)
    }
    for head, table in rules.tied.items():
        if head in shapes and table not in shapes:
            raise PortError(
                f"{table} is stored only under the name of its tied head, {head}",
                file=checkpoint.source,
                remedy="run `rushlight check` for a script that adds it",
            )
    path = checkpoint.sidecar("config.json")
    if path is None:
        config = architecture.config_type.from_tensors(checker.tensors, file=checkpoint.source)
    else:
        config = architecture.config_type.from_json(read_config(path), file=str(path))
    model = architecture(config)
    own = {path.partition(".")[0] for path, _ in model.named_slots()}
    shapes = {
        path: shape for path, shape in shapes.items() if path.partition(".")[0] in own or not rules.other_head(path)
    }
    try:
        changes = layer_changes(model, shapes, rules.tied)
    except MismatchError as error:
        raise PortError(
            "the tensors do not match the config",
            file=checkpoint.source,
            tensor=error.path,
            found=error.found,
            expected=error.expected,
            remedy="run `rushlight check`, which lists every difference",
        ) from error
    if changes is None:
        return None
    origin = architecture.describe_source(checker.tensors)
    is_uncertain = origin and origin.unknown_key and checker.config_values.get(origin.unknown_key) is None
    doubts = [f"{origin.unknown_title}. {origin.unknown_detail}"] if origin and is_uncertain else []
    return port_of_built_in(checkpoint.source, architecture, config, changes, prefixes, doubts)


def _prefixes(checker: Checker, architecture: Architecture) -> tuple[str, ...]:
    """The prefixes of the checkpoint's names, longest first because the first match is removed, then the built-in ones.

    A recording has names with the built-in prefixes, whatever the file has.
    """
    names = [view.tensor.name for view in checker.tensors.values()]
    outer = next(view.tensor.name.removesuffix(name) for name, view in checker.tensors.items())
    candidates = [outer + prefix for prefix in architecture.rules.prefixes] + [outer]
    used = [prefix for prefix in candidates if prefix and any(name.startswith(prefix) for name in names)]
    return tuple(dict.fromkeys([*used, *architecture.rules.prefixes]))
