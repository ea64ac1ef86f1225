"""The byte-level alphabet, which spells each byte as one printable character.

Its order is that of GPT-2's vocabulary, whose first 256 ids are the bytes. Source: `bytes_to_unicode` in
`src/encoder.py` of openai/gpt-2.
"""

from __future__ import annotations

__all__ = ["SYMBOLS", "token_bytes"]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER = [byte for byte in range(256) if byte not in _PRINTABLE]

SYMBOLS = [*map(chr, _PRINTABLE), *(chr(0x100 + n) for n in range(len(_OTHER)))]
"""One character per byte: the printable bytes as themselves, then U+0100 and up for the others in order."""

_BYTE = dict(zip(SYMBOLS, [*_PRINTABLE, *_OTHER], strict=True))


def token_bytes(token: str) -> bytes:
    """The bytes that a token spells.

    An added token can have characters outside the alphabet; its bytes are then its UTF-8, as in the ByteLevel decoder
    of the tokenizers library.
    """
    try:
        return bytes([_BYTE[symbol] for symbol in token])
    except KeyError:
        return token.encode()
