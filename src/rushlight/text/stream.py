"""Streaming decode: token ids in, text out as soon as it is certain.

The pieces add up to exactly what all ids decode to at once, in time linear in their number, and no character is ever
broken. There are two ways to that, by the decoder that tokenizer.json names:

- ByteLevel (GPT-2 and most models since): a token is bytes, and the text is those bytes as UTF-8. `ByteLevelStream`.
- any other: what a token adds is seen by decoding it after its left neighbours. `WindowStream`.

The DecodeStream of tokenizers is not used: it raises where a run of byte tokens turns out not to be UTF-8, and its time
is quadratic in a run of U+FFFD.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rushlight.text.byte_level import token_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["ByteLevelStream", "DecodeStream", "WindowStream", "decode_stream", "decoder_steps"]

_TOKEN_BY_TOKEN = {"BPEDecoder", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}


class DecodeStream(ABC):
    """One text, decoded as its tokens come: `push` for each, then `flush` once."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """The text that this token makes certain; often none, where a character has bytes in several tokens.

        Raises:
            RequestError: no token has this id.
        """

    @abstractmethod
    def flush(self) -> str:
        """The rest of the text; U+FFFD for the bytes of a character that was never completed."""


class ByteLevelStream(DecodeStream):
    """The stream of a byte-level tokenizer.

    Args:
        token: a token's string by its id; raises RequestError where there is none.
    """

    def __init__(self, token: Callable[[int], str]) -> None:
        self._token = token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(token_bytes(self._token(token_id)))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowStream(DecodeStream):
    """The stream of a tokenizer whose decoder is only known as a function.

    A token's text may depend on its left neighbour, and on whether it is the very first. So the new text is what
    decoding (an early token, those last shown, the new ones) gives beyond (the early token, those last shown).

    Args:
        token: a token's string by its id; raises RequestError where there is none.
        decode: token ids to text, all at once.
        waits: of a token's string, whether its text depends on what follows.
    """

    def __init__(
        self, token: Callable[[int], str], decode: Callable[[Sequence[int]], str], waits: Callable[[str], bool]
    ) -> None:
        self._token = token
        self._decode = decode
        self._waits = waits
        self._first: list[int] = []
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        token = self._token(token_id)
        self._new.append(token_id)
        if self._waits(token):
            return ""
        piece = self.flush()
        # A decoder may strip a space from the start of the text. What stands first in the windows must bear that, so it
        # has some text; it is one token, or a byte token and the one that ended the run.
        if not self._first and self._decode(self._new[-2:] * 2):
            self._first = self._new[-2:]
        self._context = self._first + self._new
        self._context_text = self._decode(self._context)
        self._new = []
        return piece

    def flush(self) -> str:
        return self._decode(self._context + self._new)[len(self._context_text) :]


def decode_stream(
    steps: Sequence[Mapping[str, Any]], token: Callable[[int], str], decode: Callable[[Sequence[int]], str]
) -> DecodeStream:
    """The stream for a decoder of these steps; one whose text is not certain before the end gives it all in `flush`."""
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelStream(token)
    if not _is_local(steps):
        return WindowStream(token, decode, waits=lambda _token: True)
    if "ByteFallback" in kinds:
        return WindowStream(token, decode, waits=_is_byte)
    return WindowStream(token, decode, waits=lambda _token: False)


def decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The `decoder` of a tokenizer.json as a flat list: none, one, or the members of a Sequence."""
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for member in decoder["decoders"] for step in decoder_steps(member)]


def _is_byte(token: str) -> bool:
    """Whether ByteFallback takes a token as a byte. A run of them is text only if the whole run is valid UTF-8."""
    return len(token) == len("<0xFF>") and token.startswith("<0x") and token.endswith(">")


def _is_local(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a token's text follows from its left neighbours; for a run of byte tokens, once the run is over."""
    kinds = [step.get("type") for step in steps]
    whole_text = steps[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
    return _TOKEN_BY_TOKEN.issuperset(kinds) and all(
        step.get("type") == "Strip" and step.get("start") in {0, 1} and step.get("stop") == 0 for step in whole_text
    )
