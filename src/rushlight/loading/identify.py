"""Determines the architecture and config of a checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError, FormatError
from rushlight.loading.families import PORT_IT, family, for_source
from rushlight.loading.near_types import LIST_THEM, refusal
from rushlight.models import ARCHITECTURES, TextConfig, recognise

if TYPE_CHECKING:
    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture, Config

__all__ = ["identify"]

_log = logging.getLogger("rushlight")


def identify(checkpoint: Checkpoint, port: Architecture | None = None) -> tuple[Architecture, Config]:
    """The architecture and config of a checkpoint: from its config.json, or else from its tensor names and shapes.

    Args:
        checkpoint: an open checkpoint; only its headers are read.
        port: the architecture of the user's port, if there is one.

    Raises:
        ConfigError: config.json is invalid or names an unknown architecture, or it is absent and the config cannot be
            inferred from the shapes.
        FormatError: config.json is absent and the tensor names match no known architecture.
    """
    path = checkpoint.sidecar("config.json")
    if path is not None:
        values = read_config(path)
        architecture = port or _by_model_type(values, checkpoint, str(path))
        return architecture, architecture.config_type.from_json(values, file=str(path))

    if port is not None:
        return port, port.config_type.from_tensors(checkpoint, file=checkpoint.source)
    recognised = recognise(checkpoint)
    if recognised is None:
        found = family(checkpoint)
        raise FormatError(
            f"no config.json, and by its tensor names this is {found.description}"
            if found
            else "no config.json, and the tensor names match no known architecture",
            file=checkpoint.source,
            remedy=for_source(
                found.fix if found else f"`rushlight inspect` shows the names, and {PORT_IT}; {LIST_THEM}",
                checkpoint.source,
            ),
        )
    config = recognised.config_type.from_tensors(checkpoint, file=checkpoint.source)
    if isinstance(config, TextConfig):
        _log.warning(
            "no config.json: assuming %s with %s, from the shapes; context %d, vocabulary %d, head_dim %d, %s head",
            recognised.model_type,
            config,
            config.context_length,
            config.vocab_size,
            config.heads.dim,
            "tied" if config.tie_word_embeddings else "untied",
        )
    return recognised, config


def _by_model_type(values: dict[str, Any], checkpoint: Checkpoint, file: str) -> Architecture:
    model_type = values.get("model_type")
    if model_type is None and (recognised := recognise(checkpoint)):
        return recognised
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    message, remedy = refusal(model_type, checkpoint)
    raise ConfigError(message, file=file, remedy=for_source(remedy, checkpoint.source))
