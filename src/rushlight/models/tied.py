"""Tied heads: whether a config ties them, and the names that a checkpoint may then lack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError
from rushlight.models.recognition import architecture_of

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture, Config

__all__ = ["has_tied_heads", "tied_by_config", "tied_heads"]


def has_tied_heads(architecture: Architecture, config: Config) -> bool:
    """Whether the heads that the rules of an architecture name share the weights of their tables."""
    return bool(architecture.rules.tied) and bool(getattr(config, "tie_word_embeddings", False))


def tied_by_config(checkpoint: Checkpoint, architecture: Architecture) -> bool | None:
    """Whether config.json ties the head, or else the architecture's default does.

    None if there is no config.json, or its value is not valid.
    """
    path = checkpoint.sidecar("config.json")
    if path is None:
        return None
    try:
        tied = read_config(path).get("tie_word_embeddings")
    except ConfigError:
        return None
    if tied is None:
        tied = getattr(architecture.config_type, "tie_word_embeddings", True)
    return tied if isinstance(tied, bool) else None


def tied_heads(checkpoint: Checkpoint, architecture: Architecture | None = None) -> frozenset[str]:
    """The names of tied heads, which an index may list even if no file of the checkpoint holds them.

    Args:
        checkpoint: an open checkpoint; only its headers are read.
        architecture: the architecture of the user's port; None for the built-in one of the checkpoint.
    """
    architecture = architecture or architecture_of(checkpoint)
    if architecture is None or tied_by_config(checkpoint, architecture) is False:
        return frozenset()
    rules = architecture.rules
    return frozenset(prefix + head for prefix in ("", *rules.prefixes) for head in rules.tied)
