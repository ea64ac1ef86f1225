"""SentencePiece's precompiled_charsmap, checked before the tokenizers library reads it.

On one that it cannot parse the library panics, and Rust writes the panic to standard error before anybody can catch it.
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
    """Require that each precompiled_charsmap of a tokenizer.json's `normalizer` can be parsed.

    It is, in base64, the size of a trie as a little-endian u32, the trie, and text in UTF-8 (`parse` in the crate
    spm_precompiled).

    Raises:
        TokenizerError: one cannot.
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
            raise ValueError("it is cut")
        raw[4 + n_bytes :].decode()
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"not a tokenizer: Precompiled cannot parse precompiled_charsmap: {error}",
            file=path,
            remedy="download the file again",
        ) from None
