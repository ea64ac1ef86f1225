"""Reads and encodes texts of any length in chunks, into the same tokens as in one piece."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from rushlight.errors import RequestError
from rushlight.text.split_points import last_split_point
from rushlight.text.tokenizer import MAX_PROMPT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from rushlight.text.tokenizer import Tokenizer

__all__ = ["encode_chunks", "read_chunks"]

CHUNK_BYTES = 1 << 12
"""Bytes read at once: about a thousand tokens, so that a progress bar moves."""


def read_chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a UTF-8 file, chunk by chunk, line ends unchanged.

    Raises:
        RequestError: not UTF-8, with `name` and the byte offset.
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


def encode_chunks(tokenizer: Tokenizer, chunks: Iterable[str]) -> Iterator[int]:
    """The token ids of the text that the chunks make up, exactly those of `tokenizer.encode` for all of it.

    A text cannot be cut just anywhere: " the" is one token, " t" and "he" are two. Each chunk is encoded up to its last
    split point if the tokenizer has `split_characters`; otherwise the text is encoded at the end.

    Raises:
        RequestError: as `Tokenizer.encode`; or the text, or a stretch of it without a split point, has more than
            `MAX_PROMPT_BYTES`.
        TokenizerError: the library fails.
    """
    characters = tokenizer.split_characters
    held = ""
    for chunk in chunks:
        held += chunk
        cut = last_split_point(held, len(held) - len(chunk), characters) if characters else 0
        if cut:
            yield from tokenizer.encode(held[:cut])
            held = held[cut:]
        elif len(held) > MAX_PROMPT_BYTES:
            without = " without a space" if characters else ""
            raise RequestError(
                f"more than {MAX_PROMPT_BYTES:,} bytes of text{without} cannot be split without changing the tokens",
                remedy="pass it in parts, as separate texts",
            )
    if held:
        yield from tokenizer.encode(held)
