"""Finds where a text can be cut without changing its tokens."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rushlight.text.stream import flat_steps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import tokenizers

    from rushlight.text.added_tokens import AddedTokens

__all__ = ["last_split_point", "split_characters"]

_ALTERNATIVE = re.compile(r"(?:\\.|\[(?:\\.|[^\]\\])*\]|\((?:\\.|[^)\\])*\)|[^|])+", re.DOTALL)
"""One alternative of a pattern without nested groups."""

_RUNS = frozenset({r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"})
"""Alternatives that match nothing but white space."""
_WORDS = frozenset(
    {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        r"\p{N}",
        r"\p{N}{1,2}",
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[\p{P}\p{S}]+[\r\n]*",
    }
)
"""Alternatives that match no space but as their first character, and look neither ahead nor behind.

The patterns of GPT-2, GPT-4 (Llama 3, Qwen, SmolLM3), GPT-4o (gpt-oss) and DeepSeek consist of these and `_RUNS`.
"""


def split_characters(library: tokenizers.Tokenizer, added: AddedTokens) -> str:
    """The characters before which a text may be cut, if a character other than white space precedes; "" for none.

    A cut changes no token if the library splits the text into words there anyway. It does so before a space that
    follows a word if its patterns consist of `_WORDS` and `_RUNS`, and in GPT-2's pattern, that of ByteLevel, also
    before a newline. The text may be normalized first only by NFC, which never composes a space or newline with its
    neighbours, and no added token in it may contain a space or strip one.
    """
    from tokenizers import models

    if not isinstance(library.model, models.BPE) or not added.are_free_of_spaces:
        return ""
    if any(step["type"] != "NFC" for step in _steps(library.normalizer, "normalizers")):
        return ""
    words = _steps(library.pre_tokenizer, "pretokenizers")
    if not all(map(_splits_before_spaces_or_not_at_all, words)) or not any(map(_splits_before_spaces, words)):
        return ""
    return " " if any(step["type"] == "Split" for step in words) else " \n"


def last_split_point(text: str, start: int, characters: str) -> int:
    """The last index, `start` or later, of one of `characters` after another than white space; 0 if there is none."""
    for i in range(len(text) - 1, max(start, 1) - 1, -1):
        if text[i] in characters and not text[i - 1].isspace():
            return i
    return 0


def _splits_before_spaces_or_not_at_all(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Split":
        isolates = step["behavior"] == "Isolated" and not step["invert"]
        return isolates and _WORDS.union(_RUNS).issuperset(_alternatives(step))
    return bool(step["type"] == "Digits")


def _splits_before_spaces(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    return step["type"] == "Split" and r"\s+" in _alternatives(step)


def _alternatives(step: Mapping[str, Any]) -> list[str]:
    """The alternatives of a Split's pattern; those of a group stay together."""
    pattern = step["pattern"].get("Regex", "").replace("\r", r"\r").replace("\n", r"\n")
    return _ALTERNATIVE.findall(pattern)


def _steps(part: Any, members: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer."""
    return [] if part is None else flat_steps(json.loads(part.__getstate__()), members)
