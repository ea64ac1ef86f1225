"""Strings to token ids and back, by the tokenizers library, with what it lets pass made an error.

The library gives an added token another id than its file says, drops ids that it does not know, cuts and pads where the
file says so, and can panic with an exception that `except Exception` does not catch: none of it silently here.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

from rushlight.errors import RequestError, TokenizerError, printable_name
from rushlight.text.byte_level import SYMBOLS
from rushlight.text.files import parse_object, read_bytes, read_text
from rushlight.text.gpt2 import END_OF_TEXT, vocabulary_and_merges
from rushlight.text.stream import decode_stream, decoder_steps

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any, Self

    import tokenizers

    from rushlight.text.stream import DecodeStream

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer"]

MAX_PROMPT_BYTES = 4 << 20
"""The longest text that is encoded at once, about a million tokens; a longer one is refused before any work is done."""

_BYTE_LEVEL = {"type": "ByteLevel"}

_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""Unicode's White_Space, which an added token takes with it; Python's own includes U+001C to U+001F."""
_NO_WHITE_SPACE = re.compile(f"[^{_WHITE_SPACE}]")


class Tokenizer:
    """A tokenizer: text to token ids, token ids to text. Threads may share it.

    Nothing is added, cut or left to chance, whatever the file says: no begin-of-text token, no truncation, no padding,
    no BPE dropout. Special tokens decode to their text.

    Attributes:
        vocab_size: the highest id + 1. Not every id below it needs to have a token: see `has_token`.
        eos_id: the id of `<|endoftext|>`; None if the vocabulary is without it.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        vocab_size: int,
        decoder: Mapping[str, Any] | None,
        file: str | os.PathLike[str] | None,
    ) -> None:
        library.no_truncation()
        library.no_padding()
        if hasattr(library.model, "dropout"):
            library.model.dropout = None
        self.vocab_size = vocab_size
        self.eos_id: int | None = library.token_to_id(END_OF_TEXT)
        self._library = library
        self._lock = Lock()
        self._decoder = decoder_steps(decoder)
        self._file = file
        added = library.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._added = sorted((token for token in added.values() if token.content.strip()), key=_longest_first)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer of a tokenizer.json.

        Raises:
            TokenizerError: it cannot be read, the library does not accept it, two tokens have one id, or an added token
                has an id that the library would replace.
        """
        import tokenizers

        raw = read_bytes(path)
        fields = parse_object(raw, path)
        with _typed("not a tokenizer", path):
            library = tokenizers.Tokenizer.from_buffer(raw)
        vocab = fields["model"]["vocab"]
        ids = (
            list(vocab.items()) if isinstance(vocab, dict) else [(piece, i) for i, (piece, _score) in enumerate(vocab)]
        )
        added = [(token["content"], token["id"]) for token in fields.get("added_tokens") or ()]
        vocab_size = _checked_size([*ids, *added], path)
        _check_not_renumbered(added, library, path)
        return cls(library, vocab_size, fields.get("decoder"), path)

    @classmethod
    def from_vocab_merges(cls, vocab_path: str | os.PathLike[str], merges_path: str | os.PathLike[str]) -> Self:
        """The byte-level BPE of a vocab.json and a merges.txt, GPT-2's format.

        Raises:
            TokenizerError: one of them cannot be read or is malformed, two tokens have one id, a byte has no token, or
                a merge is of tokens that the vocabulary does not have.
        """
        vocab = parse_object(read_bytes(vocab_path), vocab_path)
        for token, token_id in vocab.items():
            if type(token_id) is not int or not 0 <= token_id < 1 << 32:
                raise TokenizerError(f'"{printable_name(token)}" has no id', file=vocab_path, expected="0 to 2^32 - 1")
        vocab_size = _checked_size(vocab.items(), vocab_path)
        n_missing = sum(symbol not in vocab for symbol in SYMBOLS)
        if n_missing:
            raise TokenizerError(
                f"{n_missing} of the 256 bytes have no token: this is not byte-level BPE",
                file=vocab_path,
                remedy="use the model's tokenizer.json",
            )
        merges = list(_merges(read_text(merges_path), merges_path))
        with _typed("does not fit the vocabulary", merges_path):
            library = _byte_level_bpe(vocab, merges)
        return cls(library, vocab_size, _BYTE_LEVEL, vocab_path)

    @classmethod
    def gpt2(cls) -> Self:
        """GPT-2's own, which the package ships: 50,257 tokens, the last of them `<|endoftext|>`."""
        vocab, merges = vocabulary_and_merges()
        return cls(_byte_level_bpe(vocab, merges), len(vocab), _BYTE_LEVEL, None)

    def check_fits(self, vocab_size: int) -> None:
        """Require that a model that embeds `vocab_size` tokens embeds all of these; it may embed more.

        Raises:
            TokenizerError: it does not.
        """
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"the tokenizer has ids up to {self.vocab_size - 1}, and the model embeds {vocab_size} tokens",
                file=self._file,
                remedy="take the tokenizer and the weights from the same model",
            )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The token ids of a text.

        What spells a special token, such as `<|endoftext|>`, is taken for the plain characters that it is, so that
        nobody can forge the marks of a conversation by typing them. With `allow_special` it is that token.

        Raises:
            RequestError: the text has more than `MAX_PROMPT_BYTES` in UTF-8, holds half of a surrogate pair, or spells
                a special token that this tokenizer cannot take for plain characters.
            TokenizerError: the library fails.
        """
        _check_length(text)
        # The setting is the library object's: no other thread may come between making it and using it.
        with self._lock, _typed("the tokenizer fails on this text", self._file):
            self._library.encode_special_tokens = not allow_special
            ids = self._library.encode(text, add_special_tokens=False).ids
        if not allow_special:
            self._refuse_forged(text, ids)
        return ids

    def encode_marked(self, text: str, typed: Sequence[tuple[int, int]]) -> list[int]:
        """The token ids of a text in which a program wrote some added tokens, and others may have typed the like.

        An added token, special or not, is itself where all of it lies outside the `typed` stretches. Elsewhere its
        characters are plain ones. A text in which nobody typed any is encoded just as by `encode` with `allow_special`.

        Args:
            text: the text.
            typed: stretches of it, as (start, end), in order.

        Raises:
            RequestError, TokenizerError: as `encode`.
        """
        if not self._added:
            return self.encode(text)
        _check_length(text)
        edges = zip([0, *(end for _, end in typed)], [*(start for start, _ in typed), len(text)], strict=True)
        written = [span for start, end in edges for span in self._find_added(text, start, end)]
        if written == [*self._find_added(text, 0, len(text))]:
            return self.encode(text, allow_special=True)
        ids, at = [], 0
        for start, end in written:
            ids += self._encode_plain(text[at:start])
            ids += self.encode(text[start:end], allow_special=True)
            at = end
        return ids + self._encode_plain(text[at:])

    def added_tokens(self) -> list[str]:
        """The text of each token that is found in a text as a whole, before it is cut up; white space left out."""
        return [token.content for token in self._added]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; U+FFFD stands for bytes that are not UTF-8.

        Raises:
            RequestError: no token has one of the ids.
            TokenizerError: the library fails.
        """
        ids = list(ids)
        for token_id in ids:
            self._token(token_id)
        return self._decode(ids)

    def stream(self) -> DecodeStream:
        """A decoder for one text as its tokens come; its pieces add up to what `decode` gives for all of them."""
        return decode_stream(self._decoder, self._token, self._decode)

    @property
    def cuts_before_spaces(self) -> bool:
        """Whether a text cut where a space or newline follows what is no white space has the tokens of the whole.

        So it is with GPT-2's own: byte-level BPE over the words of its pre-tokenizer's pattern, nothing done to the
        text before, and no added token found in it that could reach across.
        """
        from tokenizers import models, pre_tokenizers

        library = self._library
        words = library.pre_tokenizer
        return (
            isinstance(library.model, models.BPE)
            and library.normalizer is None
            and isinstance(words, pre_tokenizers.ByteLevel)
            and words.use_regex
            and not words.add_prefix_space
            and self._special.keys() == library.get_added_tokens_decoder().keys()
        )

    def has_token(self, token_id: int) -> bool:
        """Whether there is a token with this id."""
        return 0 <= token_id < self.vocab_size and self._library.id_to_token(token_id) is not None

    def missing_ids(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` that no token has."""
        dense = self._library.get_vocab_size() == self.vocab_size  # one token for each id: no need to ask for every one
        return [i for i in range(self.vocab_size if dense else 0, vocab_size) if not self.has_token(i)]

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return self._library.get_vocab()

    def to_json(self) -> str:
        """The tokenizer in the format of tokenizer.json."""
        text: str = self._library.to_str()
        return text

    def __repr__(self) -> str:
        return f"<Tokenizer: ids up to {self.vocab_size - 1}>"

    def _token(self, token_id: int) -> str:
        token = self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            raise RequestError(f"no token has the id {token_id}", expected=f"ids from 0 to {self.vocab_size - 1}")
        return token

    def _decode(self, ids: Sequence[int]) -> str:
        with _typed("the tokenizer fails on these tokens", self._file):
            return self._library.decode(ids, skip_special_tokens=False)

    def _find_added(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where added tokens stand in text[start:end], each with the white space that it takes with it.

        The token is searched for and then widened, as the library does: a search for white space before a token is
        quadratic in white space.
        """
        while match := self._added_pattern.search(text, start, end):
            token = self._added_by_content[match[0]]
            first, last = match.span()
            if token.lstrip:
                first = start + len(text[start:first].rstrip(_WHITE_SPACE))
            if token.rstrip:
                after = _NO_WHITE_SPACE.search(text, last, end)
                last = after.start() if after else end
            yield first, last
            start = last

    @cached_property
    def _added_by_content(self) -> dict[str, tokenizers.AddedToken]:
        return {token.content: token for token in self._added}

    @cached_property
    def _added_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token.content) for token in self._added))

    def _encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which no added token counts: the library itself can only leave out the special ones."""
        library = self._library
        with _typed("the tokenizer fails on this text", self._file):
            normal = library.normalizer.normalize_str(text) if library.normalizer else text
            words = library.pre_tokenizer.pre_tokenize_str(normal) if library.pre_tokenizer else [(normal, (0, 0))]
            ids = [token.id for word, _ in words if word for token in library.model.tokenize(word)]
        self._refuse_forged(text, ids)
        return ids

    def _refuse_forged(self, text: str, ids: Sequence[int]) -> None:
        # Unigram and WordLevel models hold special tokens among their words, and find them there in any text.
        for token_id in self._special.keys() & set(ids):
            if self._special[token_id] in text:
                name = printable_name(self._special[token_id])
                raise RequestError(f'the text spells the special token "{name}"', remedy="leave it out")


def _longest_first(token: tokenizers.AddedToken) -> int:
    return -len(token.content)


def _check_length(text: str) -> None:
    """Raises RequestError of a text that is too long, or holds half of a surrogate pair."""
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not Unicode: character {error.start + 1} is half of a surrogate pair"
        ) from None
    if n_bytes > MAX_PROMPT_BYTES:
        raise RequestError("the text is too long", expected=f"at most {MAX_PROMPT_BYTES:,} bytes", found=f"{n_bytes:,}")


def _byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    library = tokenizers.Tokenizer(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocab:
        library.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return library


def _merges(text: str, path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        pair = line.removesuffix("\r").split(" ")
        if pair == [""] or pair[0] == "#version:":
            continue
        if len(pair) != 2:
            raise TokenizerError(f"line {number} is not a merge", file=path, expected="two tokens with a space between")
        yield pair[0], pair[1]


def _checked_size(ids: Iterable[tuple[str, int]], path: str | os.PathLike[str]) -> int:
    """The highest id + 1, once it is sure that no two tokens share an id."""
    tokens: dict[int, str] = {}
    for token, token_id in ids:
        other = tokens.setdefault(token_id, token)
        if other != token:
            names = f'"{printable_name(other)}" and "{printable_name(token)}"'
            raise TokenizerError(f"{names} have the same id {token_id}", file=path)
    if not tokens:
        raise TokenizerError("it has no tokens", file=path)
    return max(tokens) + 1


def _check_not_renumbered(
    added: Iterable[tuple[str, int]], library: tokenizers.Tokenizer, path: str | os.PathLike[str]
) -> None:
    for token, token_id in added:
        given = library.token_to_id(token)
        if given != token_id:
            raise TokenizerError(
                f'the tokenizers library would give the added token "{printable_name(token)}" another id',
                file=path,
                expected=given,
                found=token_id,
                remedy="an added token has its id in the vocabulary, or the next one after it",
            )


@contextmanager
def _typed(problem: str, file: str | os.PathLike[str] | None) -> Iterator[None]:
    """Raises whatever the library raises, a Rust panic too, as a TokenizerError."""
    try:
        yield
    except BaseException as error:
        # A panic is a BaseException of no importable class; others, as KeyboardInterrupt, are for the caller.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{problem}: {error}", file=file) from error
