"""Sizes: what config.json says against what the shapes say."""

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
    """The config to hold the tensors against: config.json's where it is sound, but with the sizes that the shapes show.

    So a config of another model is one problem, and not one for every tensor. None if the sizes cannot be known.
    """
    shown = _shown_by_shapes(checker, architecture)
    path = checker.checkpoint.sidecar("config.json")
    config: Any = None
    if path is None and shown:
        checker.note(
            "config",
            "there is no config.json",
            "Sizes are read from the shapes. No shape shows the number of heads, the activation or an epsilon: those "
            "are taken to be the published model's.",
            "put the model's config.json beside the weights",
        )
    elif path is not None:
        try:
            values = read_config(path)
            config = architecture.config_type.from_json(values, file=str(path))
        except ConfigError as error:
            checker.problem("config", "config.json is wrong", error.message, "correct it")
    if config is None:
        try:
            config = architecture.config_type.from_tensors(checker.tensors, file=checker.checkpoint.source)
        except ConfigError as error:
            checker.problem("config", "the sizes are not known", error.message, error.remedy or "")
            return None
    elif wrong := [
        f"{key}: config.json says {getattr(config, key):,}, the tensors {size:,}"
        for key, size in shown.items()
        if getattr(config, key, size) != size
    ]:
        checker.problem(
            "config",
            "config.json is not of these tensors",
            "\n".join(wrong),
            "correct config.json, or take it from where the weights are from",
        )
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name for field in dataclasses.fields(config)}
        config = dataclasses.replace(config, **{key: size for key, size in shown.items() if key in fields})
    checked: Config = config
    return checked


def _shown_by_shapes(checker: Checker, architecture: Architecture) -> dict[str, int]:
    """The config's fields that shapes and names show."""
    if not issubclass(architecture.config_type, TextConfig):
        return {}
    return architecture.config_type.shown_by(
        {architecture.rules.canonical(name): seen.shape for name, seen in checker.tensors.items()}
    )
