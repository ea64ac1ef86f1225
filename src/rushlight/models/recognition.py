"""Finds the built-in architecture of a checkpoint, from its config.json or its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError
from rushlight.models.registry import ARCHITECTURES, recognise

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.models.architecture import Architecture

__all__ = ["architecture_of"]


def architecture_of(checkpoint: Checkpoint) -> Architecture | None:
    """The architecture that `model_type` in config.json names, or else the one recognised by its tensors.

    None if rushlight does not support it. A config.json that cannot be read counts as missing.
    """
    path = checkpoint.sidecar("config.json")
    try:
        model_type = read_config(path).get("model_type") if path else None
    except ConfigError:
        model_type = None
    if model_type is None:
        return recognise(checkpoint)
    return ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
