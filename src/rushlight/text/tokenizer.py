"""Strings to token ids and back, by the tokenizers library, with what it lets pass made an error.

The library gives an added token another id than its file says, drops ids that it does not know, cuts and pads where the
file says so, and can panic with an exception that `except Exception` does not catch: none of it silently here.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

from rushlight.errors import RequestError, TokenizerError, printable_name
from rushlight.text.build import (
    bert_names,
    bert_word_pieces,
    byte_level_bpe,
    check_byte_level,
    read_lines,
    read_merges,
    set_prefix_space,
)
from rushlight.text.byte_level import SYMBOLS, token_bytes
from rushlight.text.charsmap import check_charsmaps
from rushlight.text.files import parse_tokenizer_json, read_tokenizer_bytes, read_tokenizer_object, read_tokenizer_text
from rushlight.text.gpt2 import END_OF_TEXT, vocabulary_and_merges
from rushlight.text.stream import (
    decode_stream,
    decoder_steps,
    is_byte_level,
    text_after,
    waits_for_more,
    window_before,
)
from rushlight.text.tokenizer_settings import AddedToken, TokenizerSettings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    import tokenizers

    from rushlight.text.stream import DecodeStream

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer"]

MAX_PROMPT_BYTES = 4 << 20
"""The longest text that is encoded at once, about a million tokens; a longer one is refused before any work is done."""

NO_SETTINGS = TokenizerSettings()

NOT_UTF8 = bytes([0xC0, 0xC1, *range(0xF5, 0x100)])
"""Bytes that no text in UTF-8 has, and therefore many vocabularies do without."""

FILE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
"""The classes of transformers that take tokenizer.json as it is."""

_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""Unicode's White_Space, which an added token takes with it; Python's own includes U+001C to U+001F."""
_NO_WHITE_SPACE = re.compile(f"[^{_WHITE_SPACE}]")


class Tokenizer:
    """A tokenizer: text to token ids, token ids to text. Threads may share it.

    Nothing is cut, padded or left to chance, whatever the file says: no truncation, no padding, no BPE dropout.
    `encode` returns the tokens of the text only; `prefix_ids` are put before a prompt. Special tokens
    decode to their text.

    Attributes:
        vocab_size: the highest id + 1. Not every id below it needs to have a token: see `has_token`.
        prefix_ids: the ids before every text, such as that of a beginning-of-text token; most tokenizers have none.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        vocab_size: int,
        file: str | os.PathLike[str] | None,
        prefix_ids: Sequence[int] | None = None,
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
        added = library.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._added = sorted((token for token in added.values() if token.content.strip()), key=_longest_first)
        self._missing_bytes = _missing_bytes(library) if is_byte_level(steps) else b""
        self.prefix_ids = tuple(_prefix_ids(library) if prefix_ids is None else prefix_ids)
        for token_id in self.prefix_ids:
            if not self.has_token(token_id):
                raise TokenizerError(f"a text begins with the id {token_id}, which no token has", file=file)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], settings: TokenizerSettings = NO_SETTINGS) -> Self:
        """The tokenizer of a tokenizer.json.

        What the file says counts, but for what transformers 5 takes from tokenizer_config.json: tokens that the file
        does not have, and `add_prefix_space`, unless the class is one that is made of tokenizer.json alone.

        Args:
            path: the file.
            settings: what the files beside it say.

        Raises:
            TokenizerError: it cannot be read, the library does not accept it, two tokens have one id, or an added token
                has an id that the library would replace.
        """
        import tokenizers

        raw = read_tokenizer_bytes(path)
        fields = parse_tokenizer_json(raw, path)
        check_charsmaps(fields.get("normalizer"), path)
        newer = (
            f"if a newer library than tokenizers {tokenizers.__version__} wrote it, pip install --upgrade tokenizers"
        )
        with _typed("not a tokenizer", path, remedy=newer):
            library = tokenizers.Tokenizer.from_buffer(raw)
        vocab = fields["model"]["vocab"]
        ids = (
            list(vocab.items()) if isinstance(vocab, dict) else [(piece, i) for i, (piece, _score) in enumerate(vocab)]
        )
        added = [(token["content"], token["id"]) for token in fields.get("added_tokens") or ()]
        vocab_size = _checked_size([*ids, *added], path)
        _check_not_renumbered(added, library, path)
        if settings.tokenizer_class not in FILE_CLASSES:
            set_prefix_space(library, settings.flag("add_prefix_space"))
        new = [token for token in settings.added if library.token_to_id(token.content) is None]
        _mark(library, [*new, *(token for token in settings.added if token.id is None)])
        for token in new:
            if token.id is not None:
                _check_not_renumbered([(token.content, token.id)], library, token.file or path)
        ids += [(token.content, library.token_to_id(token.content)) for token in new]
        return cls(library, _checked_size([*ids, *added], path) if new else vocab_size, path)

    @classmethod
    def from_vocab_merges(
        cls,
        vocab_path: str | os.PathLike[str],
        merges_path: str | os.PathLike[str],
        settings: TokenizerSettings = NO_SETTINGS,
    ) -> Self:
        """The byte-level BPE of a vocab.json and a merges.txt, GPT-2's format.

        Bytes may be without a token; a text that needs one is then an error.

        Raises:
            TokenizerError: one of them cannot be read or is malformed, two tokens have one id, it is not of bytes, or a
                merge is of tokens that the vocabulary does not have.
        """
        vocab = read_tokenizer_object(vocab_path)
        for token, token_id in vocab.items():
            if type(token_id) is not int or not 0 <= token_id < 1 << 32:
                raise TokenizerError(f'"{printable_name(token)}" has no id', file=vocab_path, expected="0 to 2^32 - 1")
        merges = list(read_merges(read_tokenizer_text(merges_path), merges_path))
        check_byte_level(vocab, merges, vocab_path)
        return cls._byte_level(vocab, merges, settings, vocab_path, merges_path)

    @classmethod
    def from_bert_vocab(cls, path: str | os.PathLike[str], settings: TokenizerSettings = NO_SETTINGS) -> Self:
        """The word pieces of BERT's vocab.txt, a token a line; a text begins with `[CLS]`.

        Raises:
            TokenizerError: it cannot be read, or is not BERT's.
        """
        vocab = read_lines(read_tokenizer_text(path))
        names = bert_names(vocab, settings, path)
        added = [*settings.added, *_unlisted(names.values(), vocab, settings)]
        vocab = _with_added(vocab, added, path)
        library = bert_word_pieces(vocab, names["unk_token"], settings)
        _mark(library, added)
        return cls(library, _checked_size(vocab.items(), path), path, [vocab[names["cls_token"]]])

    @classmethod
    def gpt2(cls, settings: TokenizerSettings = NO_SETTINGS) -> Self:
        """GPT-2's own, which the package ships: 50,257 tokens, the last of them `<|endoftext|>`."""
        return cls._byte_level(*vocabulary_and_merges(), settings, None, None)

    @classmethod
    def _byte_level(
        cls,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        settings: TokenizerSettings,
        file: str | os.PathLike[str] | None,
        merges_file: str | os.PathLike[str] | None,
    ) -> Self:
        added = [*settings.added, *_unlisted([END_OF_TEXT], vocab, settings)]
        vocab = _with_added(vocab, added, file)
        vocab_size = _checked_size(vocab.items(), file)
        with _typed("does not fit the vocabulary", merges_file):
            library = byte_level_bpe(vocab, merges)
        set_prefix_space(library, settings.flag("add_prefix_space"))
        _mark(library, added)
        prefix_ids = []
        if settings.flag("add_bos_token"):
            name = settings.names.get("bos_token", END_OF_TEXT)
            if name not in vocab:
                raise TokenizerError(
                    f'add_bos_token is true, and no token is "{printable_name(name)}"', file=settings.file
                )
            prefix_ids.append(vocab[name])
        return cls(library, vocab_size, file, prefix_ids)

    def check_fits(self, vocab_size: int) -> list[str]:
        """Require that a model that embeds `vocab_size` tokens embeds the vocabulary; it may embed more.

        Added tokens beyond the table are left out: they are never generated, and a prompt with one is an error.

        Returns:
            The added tokens that the model does not embed.

        Raises:
            TokenizerError: the model does not embed the vocabulary.
        """
        if self.vocab_size <= vocab_size:
            return []
        added = {token.content for token in self._library.get_added_tokens_decoder().values()}
        beyond = sorted((i, token) for token, i in self.vocabulary().items() if i >= vocab_size)
        if any(token not in added for _, token in beyond):
            raise TokenizerError(
                f"the tokenizer has ids up to {self.vocab_size - 1}, and the model embeds {vocab_size} tokens",
                file=self._file,
                remedy="take the tokenizer and the weights from the same model",
            )
        return [token for _, token in beyond]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The token ids of a text.

        What spells a special token, such as `<|endoftext|>`, is taken for the plain characters that it is, so that
        nobody can forge the marks of a conversation by typing them. With `allow_special` it is that token.

        Raises:
            RequestError: the text has more than `MAX_PROMPT_BYTES` in UTF-8, holds half of a surrogate pair, has a
                character for which there are no tokens, or spells a special token that this tokenizer cannot take for
                plain characters.
            TokenizerError: the library fails.
        """
        _check_length(text)
        # The setting is the library object's: no other thread may come between making it and using it.
        with self._lock, _typed("the tokenizer fails on this text", self._file):
            self._library.encode_special_tokens = not allow_special
            ids = self._library.encode(text, add_special_tokens=False).ids
        if not allow_special:
            self._refuse_forged(text, ids)
        self._refuse_missing(text, lambda token: allow_special or not token.special)
        return ids

    def encode_rendered(self, text: str, typed: Sequence[tuple[int, int]]) -> list[int]:
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

    def decode(self, ids: Iterable[int], *, before: Sequence[int] = ()) -> str:
        """The text of token ids; U+FFFD stands for bytes that are not UTF-8.

        Args:
            ids: the tokens.
            before: those that stand before them. Many tokenizers write the first token of a text without the space that
                it has anywhere else. Special tokens at the beginning are of no text. To a byte-level tokenizer it makes
                no difference what stands before.

        Raises:
            RequestError: no token has one of the ids.
            TokenizerError: the library fails.
        """
        ids = list(ids)
        for token_id in ids:
            self._token(token_id)
        if not (window := self._window(before)):
            return self._decode(ids)
        return text_after(self._decode(window), self._decode([*window, *ids]))

    def stream(self, *, before: Sequence[int] = ()) -> DecodeStream:
        """A decoder for one text as its tokens come; its pieces add up to what `decode` gives for all of them."""
        return decode_stream(self._waits, self._token, self._decode, self._window(before))

    @cached_property
    def adds_dummy_prefix(self) -> bool:
        """Whether something is put before the words of a text, such as a space, that it has nowhere else."""
        with _typed("the tokenizer fails", self._file):
            return "".join(self._words("a")) != "a"

    def _window(self, before: Sequence[int]) -> list[int]:
        """The last of the tokens before a text, as far as its decoding depends on them."""
        if self._waits is None:
            return []
        waits, token = self._waits, self._library.id_to_token
        return window_before(before, is_special=self._special.__contains__, waits=lambda i: waits(token(i) or ""))

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

    def unused_ids(self, vocab_size: int) -> list[int]:
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
        with _typed("the tokenizer fails on this text", self._file):
            ids = [token.id for word in self._words(text) if word for token in self._library.model.tokenize(word)]
        self._refuse_forged(text, ids)
        self._refuse_missing(text, lambda _token: False)
        return ids

    def _words(self, text: str) -> list[str]:
        library = self._library
        normal = library.normalizer.normalize_str(text) if library.normalizer else text
        return (
            [word for word, _ in library.pre_tokenizer.pre_tokenize_str(normal)] if library.pre_tokenizer else [normal]
        )

    def _refuse_missing(self, text: str, is_found: Callable[[tokenizers.AddedToken], bool]) -> None:
        # The library leaves a byte without a token out of the text.
        if not self._missing_bytes or not (missing := self._missing_in(text)):
            return
        added = filter(is_found, self._library.get_added_tokens_decoder().values())
        contents = sorted((token.content for token in added), key=len, reverse=True)
        if contents and not (missing := self._missing_in(re.sub("|".join(map(re.escape, contents)), "", text))):
            return
        raise RequestError(f"the tokenizer has no token for {missing!r}", file=self._file, remedy="leave it out")

    def _missing_in(self, text: str) -> str | None:
        """The first character with a byte that no token has; None if there is none."""
        normalizer = self._library.normalizer
        normal = normalizer.normalize_str(text) if normalizer else text
        raw = normal.encode()
        if len(raw.translate(None, self._missing_bytes)) == len(raw):
            return None
        return next(c for c in normal if c.encode().translate(None, self._missing_bytes) != c.encode())

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


def _unlisted(names: Iterable[str], vocab: Mapping[str, int], settings: TokenizerSettings) -> list[AddedToken]:
    """Special tokens that a vocabulary has, and of which no file says that they are."""
    listed = {token.content for token in settings.added}
    return [AddedToken(name) for name in names if name in vocab and name not in listed]


def _with_added(
    vocab: Mapping[str, int], added: Iterable[AddedToken], file: str | os.PathLike[str] | None
) -> dict[str, int]:
    """A vocabulary with its added tokens, those without an id after all others."""
    vocab = dict(vocab)
    for token in added:
        if token.id is not None and vocab.setdefault(token.content, token.id) != token.id:
            name = printable_name(token.content)
            raise TokenizerError(
                f'"{name}" has another id in the vocabulary',
                file=token.file or file,
                expected=vocab[token.content],
                found=token.id,
            )
    unused = count(max(vocab.values(), default=-1) + 1)
    for token in added:
        if token.content not in vocab:
            vocab[token.content] = next(unused)
    return vocab


def _mark(library: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
    """Has added tokens found in a text as a whole."""
    import tokenizers

    # A word that any text may have, such as "!" where a file names it as padding, stays one.
    marked = [token for token in added if token.id is not None or not _is_word(library, token.content)]
    library.add_tokens(
        [
            tokenizers.AddedToken(
                token.content, special=token.special, **{"normalized": not token.special, **token.flags}
            )
            for token in marked
        ]
    )


def _is_word(library: tokenizers.Tokenizer, content: str) -> bool:
    """Whether a text that is this token has it among its tokens."""
    token_id = library.token_to_id(content)
    if token_id is None:
        return False
    try:
        with _typed("the tokenizer fails on this text", None):
            return token_id in library.encode(content, add_special_tokens=False).ids
    except TokenizerError:
        return False


def _prefix_ids(library: tokenizers.Tokenizer) -> list[int]:
    """The ids that the post-processor of a tokenizer puts before those of a text."""
    import tokenizers

    if library.post_processor is None:
        return []
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).encode("a")
    processed = library.post_processor.process(probe, None, True)
    return list(processed.ids[: processed.sequence_ids.index(0)]) if 0 in processed.sequence_ids else []


def _missing_bytes(library: tokenizers.Tokenizer) -> bytes:
    """The bytes of UTF-8 that a byte-level BPE would leave out of a text, because no token has them."""
    from tokenizers import models

    if not isinstance(library.model, models.BPE) or library.model.unk_token is not None:
        return b""
    missing = b"".join(token_bytes(symbol) for symbol in SYMBOLS if library.token_to_id(symbol) is None)
    return missing.translate(None, NOT_UTF8)


def _checked_size(ids: Iterable[tuple[str, int]], path: str | os.PathLike[str] | None) -> int:
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
def _typed(problem: str, file: str | os.PathLike[str] | None, remedy: str | None = None) -> Iterator[None]:
    """Raises whatever the library raises, a Rust panic too, as a TokenizerError."""
    try:
        yield
    except BaseException as error:
        # A panic is a BaseException of no importable class; others, as KeyboardInterrupt, are for the caller.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{problem}: {error}", file=file, remedy=remedy) from error
