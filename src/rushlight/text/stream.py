"""Streaming decode: token ids in, text out as soon as it is certain.

The pieces add up to exactly what all ids decode to at once, in time linear in their number, and no character is ever
broken. There are two ways to that, by the decoder that tokenizer.json names:

- ByteLevel (GPT-2 and most models since): a token is bytes, and the text is those bytes as UTF-8. `ByteLevelStream`.
- any other: what a token adds is seen by decoding it after its left neighbours, those of the prompt at first.
  `WindowStream`.

The DecodeStream of tokenizers is not used: it raises where a run of byte tokens turns out not to be UTF-8, and its time
is quadratic in a run of U+FFFD.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rushlight.text.byte_level import token_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "WINDOW_TOKENS",
    "ByteLevelStream",
    "DecodeStream",
    "WindowStream",
    "decode_stream",
    "decoder_steps",
    "is_byte_level",
    "text_after",
    "waits_for_more",
    "window_before",
]

WINDOW_TOKENS = 16
"""Of what stands before a text, the tokens that it is decoded with: one would do, if every token had a text."""

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
        before: the tokens that stand before the text (see `window_before`).
    """

    def __init__(
        self,
        token: Callable[[int], str],
        decode: Callable[[Sequence[int]], str],
        waits: Callable[[str], bool],
        before: Sequence[int] = (),
    ) -> None:
        self._token = token
        self._decode = decode
        self._waits = waits
        self._first: list[int] = []
        self._context = list(before)
        self._context_text = decode(before) if before else ""
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
        return text_after(self._context_text, self._decode(self._context + self._new))


def decode_stream(
    waits: Callable[[str], bool] | None,
    token: Callable[[int], str],
    decode: Callable[[Sequence[int]], str],
    before: Sequence[int] = (),
) -> DecodeStream:
    """The stream of a tokenizer: as `WindowStream` takes them; `waits` is None for a byte-level one."""
    return ByteLevelStream(token) if waits is None else WindowStream(token, decode, waits, before)


def text_after(before: str, whole: str) -> str:
    """What `whole` has beyond `before`.

    Where `before` ends within a character, what stands for its first bytes is not in `whole`, and does not count.
    """
    if whole.startswith(before):
        return whole[len(before) :]
    return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))) :]


def window_before(
    before: Sequence[int], *, is_special: Callable[[int], bool], waits: Callable[[int], bool]
) -> list[int]:
    """The last of the tokens before a text, as far as its decoding depends on them.

    Args:
        before: all of them.
        is_special: whether a token is a special one: at the beginning those are of no text.
        waits: whether a token's text depends on what follows: the window begins with none of those.
    """
    n_special = sum(1 for _ in takewhile(is_special, before))
    start = max(len(before) - WINDOW_TOKENS, n_special)
    while start > n_special and waits(before[start]):
        start -= 1
    return list(before[start:])


def is_byte_level(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a decoder of these steps takes a token as bytes, and the text as those bytes."""
    return [step["type"] for step in steps] == ["ByteLevel"]


def waits_for_more(steps: Sequence[Mapping[str, Any]]) -> Callable[[str], bool]:
    """Of a token's string, whether its text depends on what follows, with a decoder of these steps."""
    if not _is_local(steps):
        return lambda _token: True
    return _is_byte if any(step["type"] == "ByteFallback" for step in steps) else lambda _token: False


def decoder_steps(decoder: Any) -> list[Mapping[str, Any]]:
    """The steps of a decoder of the tokenizers library: none, one, or the members of a Sequence."""
    return [] if decoder is None else _flat(json.loads(decoder.__getstate__()))


def _flat(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for member in decoder["decoders"] for step in _flat(member)]


def _is_byte(token: str) -> bool:
    """Whether ByteFallback takes a token as a byte. A run of them is text only if the whole run is valid UTF-8."""
    return len(token) == len("<0xFF>") and token.startswith("<0x") and token.endswith(">")


def _is_local(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a token's text follows from its left neighbours; for a run of byte tokens, once the run is over."""
    kinds = [step["type"] for step in steps]
    whole_text = steps[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
    return _TOKEN_BY_TOKEN.issuperset(kinds) and all(
        step["type"] == "Strip" and step["start"] in {0, 1} and step["stop"] == 0 for step in whole_text
    )
