"""A tokenizer: text to token ids and back, through the tokenizers library, without its silent surprises.

The library truncates and pads if the file asks for it, drops bytes and ids that it has no token for, recognises special
tokens in text that a user typed, and can panic with an exception that `except Exception` does not catch. Here none of
that happens silently: it is switched off, or an error.
"""

from __future__ import annotations

from functools import cached_property
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING

from rushlight.errors import RequestError, TokenizerError, printable_name
from rushlight.text.added_tokens import AddedTokens
from rushlight.text.library import library_errors, prefix_ids, without_first_prefix
from rushlight.text.missing_bytes import first_missing, missing_bytes
from rushlight.text.split_points import split_characters
from rushlight.text.stream import (
    decode_stream,
    decoder_steps,
    is_byte_level,
    text_after,
    waits_for_more,
    window_before,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Sequence

    import tokenizers

    from rushlight.text.stream import DecodeStream

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer"]

MAX_PROMPT_BYTES = 4 << 20
"""The longest text that is encoded at once, about a million tokens; a longer one is refused before any work is done."""


class Tokenizer:
    """A tokenizer. Threads may share it.

    Encoding is deterministic and complete, whatever the file sets: no truncation, no padding, no BPE dropout. `encode`
    returns the tokens of the text only; `prefix_ids` go before it in a prompt. Special tokens decode to their text.

    Args:
        library: the tokenizer of the tokenizers library, which this one takes over.
        vocab_size: the highest id + 1.
        file: where it was read, for errors.
        prefix: the prefix ids; None takes those of the library's post-processor.

    Attributes:
        vocab_size: the highest id + 1. An id below it may be without a token: see `has_token`.
        prefix_ids: the ids that go before the text of a prompt, such as that of `<s>`; most tokenizers have none.

    Raises:
        TokenizerError: a prefix id has no token.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        vocab_size: int,
        file: str | os.PathLike[str] | None,
        prefix: Sequence[int] | None = None,
    ) -> None:
        library.no_truncation()
        library.no_padding()
        if hasattr(library.model, "dropout"):
            library.model.dropout = None
        self.vocab_size = vocab_size
        self._library = library
        self._lock = Lock()
        self._file = file
        steps = decoder_steps(library.decoder)
        self._waits = None if is_byte_level(steps) else waits_for_more(steps)
        self._added = AddedTokens(library)
        self._missing_bytes = missing_bytes(library) if is_byte_level(steps) else b""
        self.prefix_ids = tuple(prefix_ids(library) if prefix is None else prefix)
        for token_id in self.prefix_ids:
            if not self.has_token(token_id):
                raise TokenizerError(f"every prompt begins with the id {token_id}, which has no token", file=file)

    def check_fits(self, vocab_size: int) -> list[str]:
        """Requires that a model with embeddings for `vocab_size` ids has one for every token, apart from added tokens.

        An added token without an embedding is never generated, and is an error in a prompt.

        Returns:
            The added tokens without an embedding.

        Raises:
            TokenizerError: another token has no embedding.
        """
        if self.vocab_size <= vocab_size:
            return []
        if self._is_dense:
            beyond = [self._token(i) for i in range(vocab_size, self.vocab_size)]
        else:
            beyond = [token for token, i in sorted(self.vocabulary().items(), key=itemgetter(1)) if i >= vocab_size]
        if any(token not in self._added for token in beyond):
            raise TokenizerError(
                f"the tokenizer has ids up to {self.vocab_size - 1}, and the model embeds {vocab_size} tokens",
                file=self._file,
                remedy="take the tokenizer and the weights from the same model",
            )
        return beyond

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The token ids of a text.

        By default the characters of a special token, such as `<|endoftext|>`, are encoded as plain text, so that a user
        cannot forge the markers of a conversation by typing them. With `allow_special` they are that token.

        Raises:
            RequestError: the text has more than `MAX_PROMPT_BYTES` in UTF-8, contains half of a surrogate pair or a
                character without tokens, or spells a special token that this tokenizer cannot encode as plain text.
            TokenizerError: the library fails.
        """
        _check_length(text)
        # The option belongs to the library's object: no other thread may come between setting it and encoding.
        with self._lock, library_errors("the tokenizer fails on this text", self._file):
            self._library.encode_special_tokens = not allow_special
            ids = self._library.encode(text, add_special_tokens=False).ids
        if not allow_special:
            self._refuse_forged(text, ids)
        if missing := self._first_missing(text):
            # Found in the text, an added token needs no tokens for its bytes.
            missing = self._first_missing(self._added.remove_from(text, special=allow_special))
        self._refuse_missing(missing)
        return ids

    def encode_rendered(self, text: str, typed: Sequence[tuple[int, int]]) -> list[int]:
        """The token ids of a rendered chat template, in which users typed some stretches.

        An added token, special or not, is recognised where it lies outside the typed stretches in full. A typed one is
        plain text, unless it is a word of the model's vocabulary that does not occur outside them: in Gemma's, tags
        such as `<table>` are. If users typed no other, the result is that of `encode` with `allow_special`.

        Args:
            text: the text.
            typed: the stretches that users typed, as (start, end), in order.

        Raises:
            RequestError, TokenizerError: as `encode`.
        """
        if not self._added.contents:
            return self.encode(text)
        _check_length(text)
        edges = zip([0, *(end for _, end in typed)], [*(start for start, _ in typed), len(text)], strict=True)
        trusted = [span for start, end in edges for span in self._added.spans(text, start, end)]
        markers = {text[start:end].strip() for start, end in trusted}
        found = {*self._added.spans(text, 0, len(text))}.difference(trusted)
        if self._added.words.difference(markers).issuperset(text[start:end].strip() for start, end in found):
            return self.encode(text, allow_special=True)
        ids, at = [], 0
        for start, end in trusted:
            ids += self._encode_plain(text, at, start, markers)
            ids += self.encode(text[start:end], allow_special=True)
            at = end
        return ids + self._encode_plain(text, at, len(text), markers)

    def added_tokens(self) -> list[str]:
        """The texts of the added tokens, the longest first, without those that are only white space."""
        return self._added.contents

    def decode(self, ids: Iterable[int], *, before: Sequence[int] = ()) -> str:
        """The text of token ids, with U+FFFD for bytes that are not UTF-8.

        Args:
            ids: the tokens.
            before: the tokens that precede them. Many tokenizers decode the first token of a text without the space
                that it has elsewhere, and special tokens at the start add no text. A byte-level tokenizer ignores it.

        Raises:
            RequestError: an id has no token.
            TokenizerError: the library fails.
        """
        ids = list(ids)
        for token_id in ids:
            self._token(token_id)
        if not (window := self._window(before)):
            return self._decode(ids)
        return text_after(self._decode(window), self._decode([*window, *ids]))

    def stream(self, *, before: Sequence[int] = ()) -> DecodeStream:
        """A decoder for tokens that arrive one by one; its pieces add up to what `decode` returns for all of them."""
        return decode_stream(self._waits, self._token, self._decode, self._window(before))

    @cached_property
    def adds_dummy_prefix(self) -> bool:
        """Whether the tokenizer prepends something to every text, such as a space."""
        with library_errors("the tokenizer fails", self._file):
            return "".join(self._words("a")) != "a"

    @cached_property
    def split_characters(self) -> str:
        """The characters before which a text may be cut without changing its tokens: see `split_points`."""
        return split_characters(self._library, self._added)

    def has_token(self, token_id: int) -> bool:
        """Whether an id has a token."""
        return 0 <= token_id < self.vocab_size and self._library.id_to_token(token_id) is not None

    def unused_ids(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` that have no token."""
        if self._is_dense:
            return list(range(self.vocab_size, vocab_size))
        used = set(self.vocabulary().values())
        return [i for i in range(vocab_size) if i not in used]

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return self._library.get_vocab()

    def to_json(self) -> str:
        """The tokenizer in the format of tokenizer.json."""
        text: str = self._library.to_str()
        return text

    @property
    def _is_dense(self) -> bool:
        """Whether every id below `vocab_size` has a token."""
        return self._library.get_vocab_size() == self.vocab_size

    def __repr__(self) -> str:
        return f"<Tokenizer: ids up to {self.vocab_size - 1}>"

    def _token(self, token_id: int) -> str:
        token = self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            raise RequestError(f"unknown token id {token_id}", expected=f"ids from 0 to {self.vocab_size - 1}")
        return token

    def _decode(self, ids: Sequence[int]) -> str:
        with library_errors("the tokenizer fails on these tokens", self._file):
            return self._library.decode(ids, skip_special_tokens=False)

    def _window(self, before: Sequence[int]) -> list[int]:
        if self._waits is None:
            return []
        waits, token = self._waits, self._library.id_to_token
        return window_before(before, is_special=self._added.special.__contains__, waits=lambda i: waits(token(i) or ""))

    def _encode_plain(self, text: str, start: int, end: int, markers: Collection[str]) -> list[int]:
        """The ids of text[start:end], in which no added token is recognised but words of the vocabulary.

        The library can ignore only special tokens.
        """
        ids, at = [], start
        for first, last in [*self._added.word_spans(text, start, end, without=markers), (end, end)]:
            ids += self._encode_words(text[at:first], is_first=at == 0)
            ids += self.encode(text[first:last], allow_special=True)
            at = last
        return ids

    def _encode_words(self, text: str, *, is_first: bool) -> list[int]:
        with library_errors("the tokenizer fails on this text", self._file):
            words = self._words(text, is_first=is_first)
            ids = [token.id for word in words if word for token in self._library.model.tokenize(word)]
        self._refuse_forged(text, ids)
        self._refuse_missing(self._first_missing(text))
        return ids

    def _words(self, text: str, *, is_first: bool = True) -> list[str]:
        normal = self._normalized(text)
        pre_tokenizer = self._library.pre_tokenizer if is_first else self._pre_tokenizer_within
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(normal)] if pre_tokenizer else [normal]

    @cached_property
    def _pre_tokenizer_within(self) -> tokenizers.pre_tokenizers.PreTokenizer | None:
        """The pre-tokenizer of text after an added token, to which Metaspace adds no prefix if its scheme is first."""
        return without_first_prefix(self._library.pre_tokenizer)

    def _normalized(self, text: str) -> str:
        normalizer = self._library.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def _first_missing(self, text: str) -> str | None:
        return first_missing(self._normalized(text), self._missing_bytes) if self._missing_bytes else None

    def _refuse_missing(self, character: str | None) -> None:
        if character is not None:
            raise RequestError(f"the tokenizer has no token for {character!r}", file=self._file, remedy="leave it out")

    def _refuse_forged(self, text: str, ids: Sequence[int]) -> None:
        # Unigram and WordLevel models have special tokens among their words, and find them in any text.
        for token_id in self._added.special.keys() & set(ids):
            if self._added.special[token_id] in text:
                name = printable_name(self._added.special[token_id])
                raise RequestError(f'the text spells the special token "{name}"', remedy="leave it out")


def _check_length(text: str) -> None:
    """Raises RequestError if a text is too long, or contains half of a surrogate pair."""
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not Unicode: character {error.start + 1} is half of a surrogate pair"
        ) from None
    if n_bytes > MAX_PROMPT_BYTES:
        raise RequestError("the text is too long", expected=f"at most {MAX_PROMPT_BYTES:,} bytes", found=f"{n_bytes:,}")
