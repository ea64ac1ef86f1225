"""Tokenizers of the tokenizers library, made from the vocabulary files that came before tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError
from rushlight.text.byte_level import SYMBOLS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    import tokenizers

    from rushlight.text.tokenizer_settings import TokenizerSettings

__all__ = [
    "bert_names",
    "bert_word_pieces",
    "byte_level_bpe",
    "check_byte_level",
    "read_lines",
    "read_merges",
    "set_prefix_space",
]

BERT_NAMES = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
"""BERT's special tokens where no file names others."""
END_OF_WORD = "</w>"
"""What a token of GPT-1's or CLIP's vocabulary ends in."""


def byte_level_bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """GPT-2's: a text is cut into words, and the bytes of each are merged."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    library = tokenizers.Tokenizer(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def set_prefix_space(library: tokenizers.Tokenizer, value: bool | None) -> None:
    """Set whether a byte-level tokenizer puts a space before a text that begins with none; None changes nothing."""
    if value is None:
        return
    from tokenizers import pre_tokenizers

    words = library.pre_tokenizer
    for part in iter(words) if isinstance(words, pre_tokenizers.Sequence) else [words]:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = value


def bert_names(vocab: Mapping[str, int], settings: TokenizerSettings, file: str | os.PathLike[str]) -> dict[str, str]:
    """The special tokens of BERT's vocabulary by their names.

    Raises:
        TokenizerError: the vocabulary does not have those that BERT's has.
    """
    names = BERT_NAMES | dict(settings.names)
    if missing := [names[name] for name in ("unk_token", "cls_token", "sep_token") if names[name] not in vocab]:
        raise TokenizerError(f"this is not BERT's vocabulary: it has no {', '.join(missing)}", file=file)
    return names


def bert_word_pieces(vocab: dict[str, int], unk_token: str, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """BERT's, as `BertTokenizer` of transformers 5.24: in lower case, unless tokenizer_config.json says otherwise."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk_token))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars") is not False,
        strip_accents=settings.flag("strip_accents"),
        lowercase=settings.flag("do_lower_case") is not False,
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    return library


def check_byte_level(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], file: str | os.PathLike[str]) -> None:
    """Require that a vocabulary without a token for every byte is of bytes all the same.

    A tokenizer that is trained on little text has tokens for those bytes alone that it saw. What belongs to another
    kind of BPE shows in how its tokens are spelled.

    Raises:
        TokenizerError: it is not.
    """
    symbols = set(SYMBOLS)
    if symbols <= vocab.keys():
        return
    for token in [*filter(lambda token: len(token) == 1 or token.endswith(END_OF_WORD), vocab), *map("".join, merges)]:
        if token.endswith(END_OF_WORD) or not symbols.issuperset(token):
            raise TokenizerError(
                "this is not byte-level BPE",
                file=file,
                found=f'the token "{token}"',
                remedy="use the model's tokenizer.json",
            )


def read_merges(text: str, path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """The pairs of a merges.txt, first learnt first.

    Raises:
        TokenizerError: a line is not a pair.
    """
    for number, line in enumerate(text.split("\n"), 1):
        pair = line.removesuffix("\r").split(" ")
        if pair == [""] or pair[0] == "#version:":
            continue
        if len(pair) != 2:
            raise TokenizerError(f"line {number} is not a merge", file=path, expected="two tokens with a space between")
        yield pair[0], pair[1]


def read_lines(text: str) -> dict[str, int]:
    """The tokens of a vocab.txt: the id of a line's is its number, from 0; of a token on two lines the last counts."""
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return {line: number for number, line in enumerate(lines)}
