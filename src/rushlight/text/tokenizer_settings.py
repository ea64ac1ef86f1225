"""Reads the settings of a tokenizer from tokenizer_config.json, special_tokens_map.json and added_tokens.json.

The precedence is that of transformers 5.24 (`PreTrainedTokenizerBase._from_pretrained`): if tokenizer_config.json has
`added_tokens_decoder`, the other two files are ignored; otherwise special_tokens_map.json overrides the special tokens
that tokenizer_config.json names, and added_tokens.json lists added tokens with their ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from reprlib import repr as short_repr
from typing import TYPE_CHECKING

from rushlight.errors import TokenizerError, printable_name
from rushlight.files.limits import MAX_TOKENIZER_CONFIG_BYTES
from rushlight.text.files import read_tokenizer_object
from rushlight.text.vocabulary import AddedToken, check_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Any

__all__ = ["TokenizerSettings", "class_name", "no_bos_token", "read_settings"]

NAMES = "bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split()
"""The keys of the special tokens that have a role."""
EXTRA = ("additional_special_tokens", "extra_special_tokens")
"""The keys that list further special tokens; transformers 5 writes the second, also as an object."""
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """The settings that turn a vocabulary into a tokenizer.

    Attributes:
        tokenizer_class: the class in transformers, without "Fast"; None if no file names one.
        names: the special tokens by role, such as `bos_token`.
        added: the added tokens, those with an id first, by id.
        config: the values of tokenizer_config.json.
        file: the path of tokenizer_config.json, for errors; None if there is none.
    """

    tokenizer_class: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def flag(self, key: str) -> bool | None:
        """A boolean setting of tokenizer_config.json; None if it is null or absent.

        Raises:
            TokenizerError: the value is not a boolean.
        """
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise TokenizerError(f"{key} is invalid", file=self.file, expected="true or false", found=short_repr(value))
        return value

    def unlisted(self, names: Iterable[str], vocab: Mapping[str, int]) -> list[AddedToken]:
        """Those of `names` that are in the vocabulary but not among the added tokens, as special tokens."""
        listed = {token.content for token in self.added}
        return [AddedToken(name) for name in names if name in vocab and name not in listed]


NO_SETTINGS = TokenizerSettings()
"""The settings of a vocabulary without any of these files."""


def read_settings(find: Callable[[str], Path | None]) -> TokenizerSettings:
    """The settings in the files next to a vocabulary.

    Args:
        find: returns the path of a file by its name; None if there is no such file.

    Raises:
        TokenizerError: a file cannot be read, or a value has a form that transformers does not write.
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


def no_bos_token(name: str, settings: TokenizerSettings) -> TokenizerError:
    """The error of `add_bos_token` without a token to add."""
    return TokenizerError(
        f'add_bos_token is true, but the vocabulary has no "{printable_name(name)}"', file=settings.file
    )


def class_name(config: Mapping[str, Any], path: Path | None) -> str | None:
    """The tokenizer class in a tokenizer_config.json or a config.json, without "Fast"; None if it names none.

    Raises:
        TokenizerError: the value is not a string.
    """
    name = config.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise TokenizerError("tokenizer_class is invalid", file=path, expected="a string", found=short_repr(name))
    return name.removesuffix("Fast") if name else None


def _token(path: Path | None, value: Any, key: str) -> AddedToken:
    """A special token, written as its text or as an object with the text as `content`."""
    if isinstance(value, str) and value:
        return AddedToken(value, file=path)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        return AddedToken(value["content"], flags=_flags(path, value), file=path)
    raise TokenizerError(f"{key} is not a token", file=path, expected="a string", found=short_repr(value))


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
                f"{key} of a token is invalid", file=path, expected="true or false", found=short_repr(flag)
            )
    return flags


def _listed(path: Path | None, decoder: Any) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, which maps each id to a token as an object."""
    if not isinstance(decoder, dict):
        raise TokenizerError(
            "added_tokens_decoder is invalid", file=path, expected="an object", found=short_repr(decoder)
        )
    tokens = []
    for key, value in decoder.items():
        if not key.isascii() or not key.isdigit() or not isinstance(value, dict):
            raise TokenizerError(
                "added_tokens_decoder is invalid",
                file=path,
                expected="an id with an object",
                found=f"{short_repr(key)}: {short_repr(value)}",
            )
        token = _token(path, value, "added_tokens_decoder")
        token_id = check_id(token.content, int(key[:12]), path)
        tokens.append(replace(token, id=token_id, special=value.get("special") is True))
    return tokens


def _listed_older(path: Path | None) -> list[AddedToken]:
    """The tokens of added_tokens.json, which maps each text to its id."""
    if path is None:
        return []
    items = read_tokenizer_object(path).items()
    return [
        AddedToken(content, check_id(content, value, path), special=False, file=path)
        for content, value in items
        if content
    ]
