"""The byte-level alphabet: each byte is written as one printable character, so that any bytes can be tokens.

The order is that of GPT-2's vocabulary, whose first 256 ids are the bytes. Source: `bytes_to_unicode` in
`src/encoder.py` of openai/gpt-2.
"""

from __future__ import annotations

__all__ = ["SYMBOLS", "token_bytes"]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER = [byte for byte in range(256) if byte not in _PRINTABLE]

SYMBOLS = [*map(chr, _PRINTABLE), *(chr(0x100 + n) for n in range(len(_OTHER)))]
"""One character a byte: printable ones as they are, then U+0100 and on for the others in their order."""

_BYTE = dict(zip(SYMBOLS, [*_PRINTABLE, *_OTHER], strict=True))


def token_bytes(token: str) -> bytes:
    """The bytes that a token stands for.

    A token with a character outside the alphabet, which only an added one can be, stands for its own UTF-8, as in the
    ByteLevel decoder of tokenizers.
    """
    try:
        return bytes([_BYTE[symbol] for symbol in token])
    except KeyError:
        return token.encode()
