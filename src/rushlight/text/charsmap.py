"""Checks SentencePiece's precompiled_charsmap before the tokenizers library parses it.

The library panics on an invalid one, and Rust prints the panic to stderr before it can be caught.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError

if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["check_charsmaps"]


def check_charsmaps(normalizer: Any, path: str | os.PathLike[str]) -> None:
    """Requires that the library can parse each precompiled_charsmap in the `normalizer` of a tokenizer.json.

    The format is base64 of the size of a trie as a little-endian u32, the trie, and UTF-8 text (`parse` in the crate
    spm_precompiled).

    Raises:
        TokenizerError: one is malformed.
    """
    if not isinstance(normalizer, dict):
        return
    members = normalizer.get("normalizers")
    for member in members if isinstance(members, list) else ():
        check_charsmaps(member, path)
    if normalizer.get("type") != "Precompiled":
        return
    try:
        raw = base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
        n_bytes = int.from_bytes(raw[:4], "little") // 4 * 4
        if len(raw) < 4 + n_bytes:
            raise ValueError("it is truncated")
        raw[4 + n_bytes :].decode()
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"not a tokenizer: Precompiled cannot parse precompiled_charsmap: {error}",
            file=path,
            remedy="download the file again",
        ) from None
