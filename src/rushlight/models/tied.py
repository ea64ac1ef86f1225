"""Heads that are tables of embeddings: what config.json says of them, and what a checkpoint may do without for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.checkpoint import read_json_object
from rushlight.errors import ConfigError
from rushlight.models import recognise

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture

__all__ = ["tied_by_config", "tied_heads"]

MAX_CONFIG_BYTES = 2**20


def tied_by_config(checkpoint: Checkpoint) -> bool | None:
    """What config.json says, by a word or by saying nothing; None without one, or with one that only a load refuses."""
    path = checkpoint.sidecar("config.json")
    if path is None:
        return None
    try:
        told = read_json_object(path, max_bytes=MAX_CONFIG_BYTES, error=ConfigError).get("tie_word_embeddings", True)
    except ConfigError:
        return None
    return told if isinstance(told, bool) else None


def tied_heads(checkpoint: Checkpoint, architecture: Architecture | None = None) -> frozenset[str]:
    """Names of heads that no file of a checkpoint need hold, though its index lists them: they are tables.

    Args:
        checkpoint: an open checkpoint, of which only the headers are needed.
        architecture: what it is of, where the user says so.
    """
    architecture = architecture or recognise(checkpoint)
    if architecture is None or tied_by_config(checkpoint) is False:
        return frozenset()
    rules = architecture.rules
    return frozenset(prefix + head for prefix in ("", *rules.prefixes) for head in rules.tied)
