"""Compares config.json with the sizes that tensor shapes and names show."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError
from rushlight.models import TextConfig

if TYPE_CHECKING:
    from rushlight.models import Architecture, Config
    from rushlight.porting.check.checker import Checker

__all__ = ["check_config"]


def check_config(checker: Checker, architecture: Architecture) -> Config | None:
    """The config to compare the tensors with: config.json's if it is valid, with the sizes that the shapes show.

    So the config of another model is one problem instead of one per tensor. None if the sizes cannot be determined.
    """
    inferred = _inferred_sizes(checker, architecture)
    path = checker.checkpoint.sidecar("config.json")
    config: Any = None
    if path is None and inferred:
        checker.note(
            "config",
            "no config.json",
            "Sizes are read from the shapes. Shapes do not show the number of heads, the activation or an epsilon: "
            "these default to the published model's.",
            "put the model's config.json next to the weights",
        )
    elif path is not None:
        try:
            config = architecture.config_type.from_json(read_config(path), file=str(path))
        except ConfigError as error:
            checker.problem("config", "config.json is invalid", error.message, "correct it")
    if config is None:
        try:
            config = architecture.config_type.from_tensors(checker.tensors, file=checker.checkpoint.source)
        except ConfigError as error:
            checker.problem("config", "the sizes are unknown", error.message, error.remedy or "")
            return None
    elif wrong := [
        f"{key} is {getattr(config, key):,} in config.json, {size:,} in the tensors"
        for key, size in inferred.items()
        if getattr(config, key, size) != size
    ]:
        checker.problem(
            "config",
            "config.json does not match the tensors",
            "\n".join(wrong),
            "correct config.json, or use the one that was published with the weights",
        )
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name for field in dataclasses.fields(config)}
        config = dataclasses.replace(config, **{key: size for key, size in inferred.items() if key in fields})
    checked: Config = config
    return checked


def _inferred_sizes(checker: Checker, architecture: Architecture) -> dict[str, int]:
    """The config fields that shapes and names show."""
    if not issubclass(architecture.config_type, TextConfig):
        return {}
    rules = architecture.rules
    shapes = {rules.canonical(name): view.shape for name, view in checker.tensors.items()}
    for head, table in rules.tied.items():
        if head in shapes:
            shapes.setdefault(table, shapes[head])  # of two tied tensors a file may hold either
    return architecture.config_type.infer_sizes(shapes)
