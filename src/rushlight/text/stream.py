"""Streaming decode: token ids in, text out as soon as no later token can change it.

The pieces add up to exactly what decoding all ids at once returns, in time linear in their number, and no character is
ever split. The decoder of the tokenizer selects one of two implementations:

- `ByteLevelStream` for ByteLevel (GPT-2 and most models since): a token is bytes, and the text is those bytes as UTF-8.
- `WindowStream` for all others: the text that a token adds is found by decoding it together with the tokens before it.

The DecodeStream of the tokenizers library is not used: it raises when a run of byte tokens is not valid UTF-8, and its
time is quadratic in a run of U+FFFD.
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
    "flat_steps",
    "is_byte_level",
    "text_after",
    "waits_for_more",
    "window_before",
]

WINDOW_TOKENS = 16
"""The number of preceding tokens that a text is decoded with. One would do if every token had text."""

_TOKEN_BY_TOKEN = {"BPEDecoder", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}


class DecodeStream(ABC):
    """Decodes one text token by token: `push` each, then `flush` once."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """The text that this token completes; often "", as when a character has bytes in several tokens.

        Raises:
            RequestError: the id has no token.
        """

    @abstractmethod
    def flush(self) -> str:
        """The rest of the text, with U+FFFD for the bytes of a character that was not completed."""


class ByteLevelStream(DecodeStream):
    """The stream of a byte-level tokenizer.

    Args:
        token: returns a token's string by its id; raises RequestError if the id has none.
    """

    def __init__(self, token: Callable[[int], str]) -> None:
        self._token = token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(token_bytes(self._token(token_id)))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowStream(DecodeStream):
    """The stream of a tokenizer whose decoder is a black box.

    A token's text can depend on its left neighbour, and on whether it is the first of the text. So the new text is what
    decode(first tokens + last tokens shown + new tokens) has beyond decode(first tokens + last tokens shown).

    Args:
        token: returns a token's string by its id; raises RequestError if the id has none.
        decode: decodes a list of token ids.
        waits: returns whether the text of a token, by its string, depends on the tokens after it.
        before: the tokens that precede the text (see `window_before`).
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
        # A decoder may strip a space from the start of the text. So that new text never loses one, each window begins
        # with the first token that has text; of a run of byte tokens, with the last and the token after the run.
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
    """The stream of a tokenizer. Arguments as of `WindowStream`; `waits` is None for a byte-level tokenizer."""
    return ByteLevelStream(token) if waits is None else WindowStream(token, decode, waits, before)


def text_after(before: str, whole: str) -> str:
    """The part of `whole` after `before`.

    If `before` ends inside a character, it ends in replacement characters that `whole` does not have; then the part
    after their common prefix.
    """
    if whole.startswith(before):
        return whole[len(before) :]
    return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))) :]


def window_before(
    before: Sequence[int], *, is_special: Callable[[int], bool], waits: Callable[[int], bool]
) -> list[int]:
    """The last tokens of `before` that can change how the text after them decodes.

    Args:
        before: all tokens before the text.
        is_special: returns whether a token is special; those at the start add no text and are left out.
        waits: returns whether a token's text depends on the tokens after it; the window does not begin with one.
    """
    n_special = sum(1 for _ in takewhile(is_special, before))
    start = max(len(before) - WINDOW_TOKENS, n_special)
    while start > n_special and waits(before[start]):
        start -= 1
    return list(before[start:])


def is_byte_level(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a decoder with these steps maps each token to bytes, and the bytes to text as UTF-8."""
    return [step["type"] for step in steps] == ["ByteLevel"]


def waits_for_more(steps: Sequence[Mapping[str, Any]]) -> Callable[[str], bool]:
    """The function `waits` of `WindowStream` for a decoder with these steps."""
    if not _is_local(steps):
        return lambda _token: True
    return _is_byte if any(step["type"] == "ByteFallback" for step in steps) else lambda _token: False


def decoder_steps(decoder: Any) -> list[Mapping[str, Any]]:
    """The steps of a decoder of the tokenizers library: none, one, or the members of a Sequence, flattened."""
    return [] if decoder is None else flat_steps(json.loads(decoder.__getstate__()), "decoders")


def flat_steps(part: Mapping[str, Any], members: str) -> list[Mapping[str, Any]]:
    """The part of a tokenizer, or the members of a Sequence of such parts, which it has under the key `members`."""
    if part["type"] != "Sequence":
        return [part]
    return [step for member in part[members] for step in flat_steps(member, members)]


def _is_byte(token: str) -> bool:
    """Whether ByteFallback maps a token to a byte. A run of them becomes text only if all of it is valid UTF-8."""
    return len(token) == len("<0xFF>") and token.startswith("<0x") and token.endswith(">")


def _is_local(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a token's text depends only on the tokens before it; for a run of byte tokens, once the run has ended."""
    kinds = [step["type"] for step in steps]
    whole_text = steps[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
    return _TOKEN_BY_TOKEN.issuperset(kinds) and all(
        step["type"] == "Strip" and step["start"] in {0, 1} and step["stop"] == 0 for step in whole_text
    )
