"""The architectures: one file each, and the registry that names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.models.architecture import Architecture, Config
from rushlight.models.gpt2 import GPT2
from rushlight.models.ported import load_port

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ARCHITECTURES", "Architecture", "Config", "load_port", "recognise"]

ARCHITECTURES: dict[str, Architecture] = {architecture.model_type: architecture for architecture in (GPT2,)}
"""By `model_type`, the word in config.json."""


def recognise(names: Iterable[str]) -> Architecture | None:
    """The architecture whose tensors these are, by the names that all its checkpoints have; None if there is none."""
    names = set(names)
    for architecture in ARCHITECTURES.values():
        paths = {architecture.rules.canonical(name) for name in names}
        if architecture.landmarks <= paths:
            return architecture
    return None
