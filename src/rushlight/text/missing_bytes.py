"""Finds the characters of a text that a byte-level BPE has no tokens for, and would silently drop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.text.byte_level import SYMBOLS, token_bytes

if TYPE_CHECKING:
    import tokenizers

__all__ = ["first_missing", "missing_bytes"]

_NOT_IN_UTF8 = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
"""Bytes that never occur in UTF-8, so that many vocabularies do without them."""


def missing_bytes(library: tokenizers.Tokenizer) -> bytes:
    """The bytes of UTF-8 that a byte-level tokenizer has no tokens for; none if it has an unknown token for them."""
    from tokenizers import models

    if not isinstance(library.model, models.BPE) or library.model.unk_token is not None:
        return b""
    missing = b"".join(token_bytes(symbol) for symbol in SYMBOLS if library.token_to_id(symbol) is None)
    return missing.translate(None, _NOT_IN_UTF8)


def first_missing(text: str, missing: bytes) -> str | None:
    """The first character of `text` with a byte in `missing`; None if there is none."""
    raw = text.encode()
    if len(raw.translate(None, missing)) == len(raw):
        return None
    return next(c for c in text if c.encode().translate(None, missing) != c.encode())
