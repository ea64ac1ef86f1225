"""The largest file of each kind that is read. A larger one is refused before any of it is read."""

from __future__ import annotations

__all__ = ["MAX_CONFIG_BYTES", "MAX_TEMPLATE_BYTES", "MAX_TOKENIZER_CONFIG_BYTES", "MAX_TOKENIZER_FILE_BYTES"]

MAX_CONFIG_BYTES = 1 << 20
"""config.json and generation_config.json: a few KiB in practice."""
MAX_TEMPLATE_BYTES = 1 << 20
"""A chat template: up to some 20 KiB in practice."""
MAX_TOKENIZER_CONFIG_BYTES = 16 << 20
"""tokenizer_config.json, which lists every added token."""
MAX_TOKENIZER_FILE_BYTES = 64 << 20
"""tokenizer.json and the vocabulary files: twice the largest in wide use, one of 262,144 tokens."""
