"""Texts of any length: read in pieces, and encoded in pieces as the whole would be."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from rushlight.errors import RequestError
from rushlight.text.tokenizer import MAX_PROMPT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from rushlight.text.tokenizer import Tokenizer

__all__ = ["encode_chunks", "read_chunks"]

CHUNK_BYTES = 1 << 12
"""Read at once: some thousand tokens, so that a progress bar moves."""


def read_chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a UTF-8 file, a piece after the other, nothing changed: line ends stay as they are.

    Raises:
        RequestError: it is not UTF-8; the error names `name` and the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        data = file.read(CHUNK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise RequestError(
                "the text is not UTF-8",
                file=name,
                offset=offset - pending + error.start,
                found=f"0x{error.object[error.start]:02x}",
            ) from None
        offset += len(data)
        if text:
            yield text
        if not data:
            return


def encode_chunks(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[int]:
    """The token ids of the text that the pieces make up, exactly those of `tokenizer.encode` of the whole.

    A byte-level BPE cannot be cut anywhere: " the" is one token, " t" and "he" are two. GPT-2's pre-tokenizer however
    never joins a character that is no white space with a space or newline after it, so that a cut between them changes
    nothing. With any other tokenizer the text is held and encoded whole.

    Raises:
        RequestError: as `Tokenizer.encode`; and the text, or a stretch of it without a space or newline, has more than
            `MAX_PROMPT_BYTES` and can therefore not be encoded whole.
        TokenizerError: the library fails.
    """
    held = ""
    for piece in pieces:
        held += piece
        cut = _last_cut(held, len(held) - len(piece)) if tokenizer.cuts_before_spaces else 0
        if cut:
            yield from tokenizer.encode(held[:cut])
            held = held[cut:]
        elif len(held) > MAX_PROMPT_BYTES:
            without = " without a space" if tokenizer.cuts_before_spaces else ""
            raise RequestError(
                f"more than {MAX_PROMPT_BYTES:,} bytes of text{without} cannot be cut without changing the tokens",
                remedy="give it in parts, each as a text of its own",
            )
    if held:
        yield from tokenizer.encode(held)


def _last_cut(text: str, start: int) -> int:
    """The last place, at `start` or after, where a space or newline follows what is no white space; 0 if none."""
    for i in range(len(text) - 1, max(start, 1) - 1, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return 0
