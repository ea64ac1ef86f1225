"""Reads the files next to the weights: the tokenizer and the author's generation settings."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from rushlight.checkpoint import read_config
from rushlight.errors import TokenizerError, first_ten
from rushlight.models.generation_config import GENERATION_KEYS, GenerationConfig

if TYPE_CHECKING:
    from pathlib import Path

    from rushlight.checkpoint import Checkpoint
    from rushlight.models import Architecture, TextConfig
    from rushlight.text import Tokenizer

__all__ = ["find_tokenizer", "generation_config", "load_tokenizer"]

_log = logging.getLogger("rushlight")


def load_tokenizer(
    checkpoint: Checkpoint, architecture: Architecture, config: TextConfig
) -> tuple[Tokenizer | None, TokenizerError | None]:
    """The model's tokenizer: from the files next to the weights, or else the architecture's fallback.

    Returns:
        The tokenizer, or None and the error to raise when text is encoded; both are None if there are no tokenizer
        files and the architecture has no tokenizer for this vocabulary. Token ids work in either case.

    Raises:
        TokenizerError: a file is invalid, or the vocabulary does not fit the model's.
    """
    from rushlight.text import gpt2_tokenizer
    from rushlight.text.tokenizer_settings import read_settings

    tokenizer = find_tokenizer(checkpoint)
    if isinstance(tokenizer, TokenizerError):
        return None, tokenizer
    if tokenizer is None and architecture.fallback_tokenizer(config.vocab_size) == "gpt2":
        _log.warning("no tokenizer next to the weights: using GPT-2's, which has the same %d tokens", config.vocab_size)
        tokenizer = gpt2_tokenizer(read_settings(partial(_find, checkpoint)))
    if tokenizer is not None and (beyond := tokenizer.check_fits(config.vocab_size)):
        _log.warning(
            "the tokenizer has tokens beyond the model's %d: %s; they are never generated, and refused in a prompt",
            config.vocab_size,
            ", ".join(first_ten(beyond)),
        )
    return tokenizer, None


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer | TokenizerError | None:
    """The tokenizer next to the weights, as `rushlight.text.read_tokenizer` returns it.

    Raises:
        TokenizerError: a file is invalid.
    """
    from rushlight.text import read_tokenizer

    return read_tokenizer(partial(_find, checkpoint))


def _find(checkpoint: Checkpoint, pattern: str) -> Path | None:
    """The path of a file next to the weights, by its name or a glob pattern."""
    if "*" in pattern:
        return min(checkpoint.folder.glob(pattern), default=None) if checkpoint.folder else None
    return checkpoint.sidecar(pattern)


def generation_config(checkpoint: Checkpoint, config: TextConfig) -> GenerationConfig:
    """The author's generation settings: from generation_config.json, or else from config.json.

    Raises:
        ConfigError: the file is invalid.
    """
    if path := checkpoint.sidecar("generation_config.json"):
        values = read_config(path)
    elif path := checkpoint.sidecar("config.json"):
        values = {key: value for key, value in read_config(path).items() if key in GENERATION_KEYS}
    else:
        return GenerationConfig(eos_token_id=config.eos_token_id)
    return GenerationConfig.from_json(
        values, vocab_size=config.vocab_size, eos_token_id=config.eos_token_id, file=str(path)
    )
