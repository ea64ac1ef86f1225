"""What the files beside a vocabulary say about its tokens.

These are tokenizer_config.json, special_tokens_map.json and added_tokens.json. Which of them counts is as in
transformers 5.24 (`PreTrainedTokenizerBase._from_pretrained`): a tokenizer_config.json with `added_tokens_decoder`
counts alone; without it, special_tokens_map.json overrides the names in it, and added_tokens.json lists tokens and ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from reprlib import repr as short_repr
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError, printable_name
from rushlight.files.limits import MAX_TOKENIZER_CONFIG_BYTES
from rushlight.text.files import read_tokenizer_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

__all__ = ["AddedToken", "TokenizerSettings", "class_name", "read_settings"]

NAMES = "bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split()
"""The special tokens that have a name."""
EXTRA = ("additional_special_tokens", "extra_special_tokens")
"""Keys that list special tokens without a name; transformers 5 writes the second, also as an object."""
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text as a whole.

    Attributes:
        content: its text.
        id: None where no file gives one: it is the vocabulary's, or the next one.
        special: whether it is a special token.
        flags: lstrip, rstrip, normalized and single_word of the tokenizers library, as far as they are given.
        file: where it is listed, for errors.
    """

    content: str
    id: int | None = None
    special: bool = True
    flags: Mapping[str, bool] = field(default_factory=dict)
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """How to make a tokenizer from a vocabulary.

    Attributes:
        tokenizer_class: transformers' class, without "Fast"; None where no file names one.
        names: special tokens by their names, such as `bos_token`.
        added: added tokens: those with an id first, by id.
        config: tokenizer_config.json.
        file: where it is, for errors; None if there is none.
    """

    tokenizer_class: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def flag(self, key: str) -> bool | None:
        """A setting of tokenizer_config.json that is true or false; None if it is null or not there.

        Raises:
            TokenizerError: it is something else.
        """
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise TokenizerError(f"{key} is wrong", file=self.file, expected="true or false", found=short_repr(value))
        return value


def read_settings(find: Callable[[str], Path | None]) -> TokenizerSettings:
    """The settings beside a vocabulary.

    Args:
        find: the path of a file by its name; None if there is no such file.

    Raises:
        TokenizerError: a file cannot be read, or a value in it is not what transformers writes.
    """
    path = find(CONFIG)
    config = {} if path is None else read_tokenizer_object(path, max_bytes=MAX_TOKENIZER_CONFIG_BYTES)
    decoder = config.get("added_tokens_decoder")
    values = {key: (path, config[key]) for key in (*NAMES, *EXTRA) if config.get(key)}
    older = None if decoder is not None else find("special_tokens_map.json")
    if older is not None:
        older_values = read_tokenizer_object(older)
        values |= {key: (older, older_values[key]) for key in (*NAMES, *EXTRA) if older_values.get(key)}
    names = {key: _token(*values[key], key) for key in NAMES if key in values}
    special = list(names.values())
    for key in EXTRA:
        if key in values:
            special += _tokens(*values[key], key)
    listed = _listed(path, decoder) if decoder is not None else _listed_older(find("added_tokens.json"))
    is_special = {token.content for token in special}
    added = [
        replace(token, special=True) if token.content in is_special else token
        for token in sorted(listed, key=lambda token: token.id or 0)
    ]
    seen = {token.content for token in added}
    for token in special:
        if token.content not in seen:
            seen.add(token.content)
            added.append(token)
    return TokenizerSettings(
        tokenizer_class=class_name(config, path),
        names={key: token.content for key, token in names.items()},
        added=tuple(added),
        config=config,
        file=path,
    )


def class_name(config: Mapping[str, Any], path: Path | None) -> str | None:
    """The class that tokenizer_config.json or config.json names, without "Fast"; None if it names none.

    Raises:
        TokenizerError: what stands there is not a name.
    """
    name = config.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise TokenizerError("tokenizer_class is wrong", file=path, expected="a name", found=short_repr(name))
    return name.removesuffix("Fast") if name else None


def _token(path: Path | None, value: Any, key: str) -> AddedToken:
    """A special token: its text, or an object with it as `content`."""
    if isinstance(value, str) and value:
        return AddedToken(value, file=path)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        return AddedToken(value["content"], flags=_flags(path, value), file=path)
    raise TokenizerError(f"{key} is not a token", file=path, expected="a text", found=short_repr(value))


def _tokens(path: Path | None, value: Any, key: str) -> list[AddedToken]:
    members = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(members, list):
        raise TokenizerError(f"{key} is not a list of tokens", file=path, found=short_repr(value))
    return [_token(path, member, key) for member in members]


def _flags(path: Path | None, value: Mapping[str, Any]) -> dict[str, bool]:
    flags = {key: value[key] for key in ("lstrip", "rstrip", "normalized", "single_word") if key in value}
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            raise TokenizerError(
                f"{key} of a token is wrong", file=path, expected="true or false", found=short_repr(flag)
            )
    return flags


def _listed(path: Path | None, decoder: Any) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`: an object of ids, each with its token as an object."""
    if not isinstance(decoder, dict):
        raise TokenizerError(
            "added_tokens_decoder is wrong", file=path, expected="an object", found=short_repr(decoder)
        )
    tokens = []
    for key, value in decoder.items():
        if not key.isascii() or not key.isdigit() or not isinstance(value, dict):
            raise TokenizerError(
                "added_tokens_decoder is wrong",
                file=path,
                expected="an object by each id",
                found=f"{short_repr(key)}: {short_repr(value)}",
            )
        token = _token(path, value, "added_tokens_decoder")
        token_id = _id(path, int(key[:12]), token.content)
        tokens.append(replace(token, id=token_id, special=value.get("special") is True))
    return tokens


def _listed_older(path: Path | None) -> list[AddedToken]:
    """The tokens of added_tokens.json: an object of texts, each with its id."""
    if path is None:
        return []
    items = read_tokenizer_object(path).items()
    return [
        AddedToken(content, _id(path, value, content), special=False, file=path) for content, value in items if content
    ]


def _id(path: Path | None, value: Any, content: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise TokenizerError(
            f'"{printable_name(content)}" has no id', file=path, expected="0 to 2^32 - 1", found=short_repr(value)
        )
    return value
