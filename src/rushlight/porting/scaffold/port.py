"""Scaffolds a port: a Python file with the model under a checkpoint's own names, and a test that loads it.

For a built-in architecture it is the architecture's own file, fitted to the checkpoint. For another decoder of Llama's
or GPT-NeoX's form it is complete, and marks what it assumes. For any other model it has a module for every module of
the checkpoint, with the layers inferred from names and shapes, and leaves the forward to write.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.checkpoint.dtypes import WEIGHT_DTYPES
from rushlight.errors import PortError
from rushlight.models import PretrainedModel, TextConfig
from rushlight.models.tied import has_tied_heads
from rushlight.porting.check.checker import Checker, config_values
from rushlight.porting.check.fit import is_buffer
from rushlight.porting.check.names import find_architecture
from rushlight.porting.scaffold.built_in import MismatchError, layer_changes, port_of_built_in
from rushlight.porting.scaffold.decoder import DecoderWriter
from rushlight.porting.scaffold.files import USAGE, Scaffold, port_test
from rushlight.porting.scaffold.form import Form, body_prefix
from rushlight.porting.scaffold.model_file import ModelFile
from rushlight.porting.scaffold.source_text import MODEL_WIDTH, one_line
from rushlight.porting.scaffold.tree import tree_of
from rushlight.porting.scaffold.variant import VariantWriter
from rushlight.porting.scaffold.writer import Writer, name_patterns

if TYPE_CHECKING:
    import os

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture
    from rushlight.nn import Module

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
    checker = Checker(checkpoint, readable=False)
    architecture = find_architecture(checker)
    if architecture is None:
        return _unknown(checkpoint).scaffold(path)
    return _of_built_in(checker, architecture, path)


def _inherits(model: Module) -> bool:
    """Whether a built-in model has modules of another model's file, in which a variant of it cannot be edited."""
    own = type(model).__module__
    return any(
        type(part).__module__ not in {own, "rushlight.nn.layers", "rushlight.nn.module"}
        for _, part in model.named_modules()
    ) or any(base.__module__ not in {own, PretrainedModel.__module__} for base in type(model).__bases__)


def _unknown(checkpoint: Checkpoint) -> Writer:
    """The writer for a model that is not built in: for a decoder of a known form, or for any model."""
    prefix = body_prefix(checkpoint)
    buffers = [tensor.name for tensor in checkpoint.values() if tensor.dtype not in WEIGHT_DTYPES or is_buffer(tensor)]
    weights = {
        tensor.name.removeprefix(prefix): tensor.shape for tensor in checkpoint.values() if tensor.name not in buffers
    }
    form = Form.of(tree_of(weights.items(), checkpoint.source), config_values(checkpoint))
    if form is None:
        return Writer(checkpoint)
    patterns = name_patterns(name.removeprefix(prefix) for name in buffers)
    return DecoderWriter(checkpoint, weights, form=form, prefix=prefix, buffers=patterns)


def _of_built_in(checker: Checker, architecture: Architecture, path: Path) -> Scaffold:
    """The port of a checkpoint of a built-in architecture, or of a variant of one."""
    checkpoint = checker.checkpoint
    prefixes = _prefixes(checker, architecture)
    rules = replace(architecture.rules, prefixes=prefixes)
    if config_file := checkpoint.sidecar("config.json"):
        config = architecture.config_type.from_json(read_config(config_file), file=str(config_file))
    else:
        config = architecture.config_type.from_tensors(checker.tensors, file=checkpoint.source)
    model = architecture(config)
    own = {name.partition(".")[0] for name, _ in model.named_slots()}
    shapes = {}
    for tensor in checkpoint.values():
        name = rules.canonical(tensor.name)
        is_weight = tensor.dtype in WEIGHT_DTYPES and not rules.is_buffer(tensor.name)
        if is_weight and (name.partition(".")[0] in own or not rules.is_other_head(name)):
            shapes[name] = tensor.shape
    if has_tied_heads(architecture, config):
        for head, table in rules.tied.items():  # of two tied tensors a file may hold either
            for stored, other in ((head, table), (table, head)):
                if stored in shapes:
                    shapes.setdefault(other, shapes[stored])
    try:
        changes = layer_changes(model, shapes)
    except MismatchError as error:
        raise PortError(
            "the tensors do not match the config",
            file=checkpoint.source,
            tensor=error.path,
            found=error.found,
            expected=error.expected,
            remedy="run `rushlight check`, which lists every difference",
        ) from error
    docstring = _docstring(checker, architecture)
    if changes is not None:
        module = port_of_built_in(model, changes, prefixes, docstring)
        if module is not None:
            return Scaffold(module, port_test(checkpoint.source, path, computes_logits=True), ())
    if _inherits(model):
        return _unknown(checkpoint).scaffold(path)
    sizes = config.infer_sizes(shapes) if isinstance(config, TextConfig) else {}
    file = ModelFile.of(model)
    writer = VariantWriter(
        checkpoint, shapes, model=model, sizes=sizes, file=file, prefixes=prefixes, docstring=docstring
    )
    return writer.scaffold(path)


def _docstring(checker: Checker, architecture: Architecture) -> list[str]:
    """The first lines of the port's docstring: how to run it, and what the checkpoint does not show."""
    name = one_line(Path(checker.checkpoint.source).name)
    lines = [
        f"A port of {name}, written by `rushlight port` from rushlight's own {architecture.model_type}.",
        "",
        *USAGE,
    ]
    origin = architecture.describe_source(checker.tensors)
    if origin and origin.unknown_key and checker.config_values.get(origin.unknown_key) is None:
        lines += ["", *wrap(f"Uncertain: {origin.unknown_title}. {origin.unknown_detail}", MODEL_WIDTH)]
    return lines


def _prefixes(checker: Checker, architecture: Architecture) -> tuple[str, ...]:
    """The prefixes of the checkpoint's names, longest first because the first match is removed, then the built-in ones.

    A recording has names with the built-in prefixes, whatever the file has.
    """
    names = [view.tensor.name for view in checker.tensors.values()]
    outer = next(view.tensor.name.removesuffix(name) for name, view in checker.tensors.items())
    candidates = [outer + prefix for prefix in architecture.rules.prefixes] + [outer]
    used = [prefix for prefix in candidates if prefix and any(name.startswith(prefix) for name in names)]
    return tuple(dict.fromkeys([*used, *architecture.rules.prefixes]))
