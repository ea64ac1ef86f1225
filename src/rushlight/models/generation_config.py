"""What a model's author set for generation: generation_config.json, or the same keys in an older config.json.

Applied are the tokens that end a text and the tokens that the author forbids. All other settings are the caller's:
those in the file that would change a text are named once, with the flags that set them. Keys, and the values that
change nothing, are those of transformers 4 and 5 (generation/configuration_utils.py).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rushlight.errors import printable_name
from rushlight.models.schema import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.models.architecture import Config

__all__ = ["GENERATION_KEYS", "GenerationConfig"]

_PLAIN: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_new_tokens": ((), "-n"),
    "max_length": ((20,), ""),
    "max_time": ((), ""),
    "min_length": ((0,), ""),
    "min_new_tokens": ((0,), ""),
    "stop_strings": (([], ""), "--stop"),
    "num_beams": ((1,), "--beams"),
    "num_return_sequences": ((1,), "--samples"),
    "repetition_penalty": ((1,), "--repetition-penalty"),
    "encoder_repetition_penalty": ((1,), ""),
    "presence_penalty": ((0,), "--presence-penalty"),
    "frequency_penalty": ((0,), "--frequency-penalty"),
    "no_repeat_ngram_size": ((0,), ""),
    "encoder_no_repeat_ngram_size": ((0,), ""),
    "exponential_decay_length_penalty": ((), ""),
    "forced_bos_token_id": ((), ""),
    "forced_eos_token_id": ((), ""),
    "force_words_ids": (([],), ""),
    "constraints": (([],), ""),
    "sequence_bias": (([], {}), ""),
    "guidance_scale": ((1,), ""),
    "token_healing": ((False,), ""),
    "watermarking_config": (({},), ""),
    "penalty_alpha": ((0,), ""),
    "dola_layers": ((), ""),
}
"""Each key's values that change nothing, and the flag that does the same here; "" if there is none."""
_SAMPLED: dict[str, tuple[tuple[Any, ...], str]] = {
    "temperature": ((), "--temperature"),
    "top_k": ((0,), "--top-k"),
    "top_p": ((1,), "--top-p"),
    "min_p": ((0,), "--min-p"),
    "top_h": ((), ""),
    "typical_p": ((1,), ""),
    "epsilon_cutoff": ((0,), ""),
    "eta_cutoff": ((0,), ""),
}
"""The same of keys that count only beside `do_sample`."""
_OF_BEAMS: dict[str, tuple[tuple[Any, ...], str]] = {
    "length_penalty": ((1,), ""),
    "early_stopping": ((False,), ""),
    "num_beam_groups": ((1,), ""),
    "diversity_penalty": ((0,), ""),
}
"""The same of keys that count only beside `num_beams`."""

GENERATION_KEYS = frozenset(
    {*_PLAIN, *_SAMPLED, *_OF_BEAMS, "do_sample", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"}
    | {"remove_invalid_values", "renormalize_logits", "output_scores", "return_dict_in_generate"}
)
"""What transformers 4 kept in config.json for its generate()."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What an author set for generation.

    Attributes:
        eos_token_id: the tokens that end a text.
        suppress_tokens: tokens that are never generated: `suppress_tokens`, and `bad_words_ids` of one token each.
        begin_suppress_tokens: tokens that are not generated first.
        not_applied: the keys that would change a text and are left to the caller, each with the flags that apply it, or
            "" where rushlight has no equivalent.
        file: where they stand.
    """

    eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    not_applied: Mapping[str, str] = field(default_factory=dict)
    file: str = "generation_config.json"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], config: Config, *, file: str) -> GenerationConfig:
        """Reads a generation_config.json, or a config.json without one beside it, as transformers does.

        Where it names no token that ends a text, config.json does, as in vLLM; transformers would then go on to the
        longest text.

        Raises:
            ConfigError: keys that are mistyped or forbid every token: all of them.
        """
        fields = Fields(values, file)
        vocab_size = config.vocab_size
        ends = fields.token_ids("eos_token_id", vocab_size) or config.eos_token_id
        never = fields.token_ids("suppress_tokens", vocab_size)
        at_first = fields.token_ids("begin_suppress_tokens", vocab_size)
        words = fields.token_sequences("bad_words_ids")
        # transformers leaves out a bad word that is the end of the text alone.
        never += tuple(word[0] for word in words if len(word) == 1 and word[0] < vocab_size and word[0] not in ends)
        if len({*never, *at_first}) == vocab_size:
            fields.problem("suppress_tokens, begin_suppress_tokens and bad_words_ids forbid every token")
        fields.finish(benign=values)
        not_applied = _not_applied(values)
        if any(len(word) > 1 for word in words):
            not_applied["bad_words_ids of several tokens"] = ""
        return cls(
            eos_token_id=ends,
            suppress_tokens=tuple(sorted({*never})),
            begin_suppress_tokens=tuple(sorted({*at_first})),
            not_applied=not_applied,
            file=file,
        )

    def describe_not_applied(self) -> str:
        """The keys that are not applied and the flags that apply them, in a sentence.

        It is true whether or not the caller gives these flags.
        """
        flags = " ".join(flag for flag in self.not_applied.values() if flag)
        parts = []
        if by_flag := [printable_name(name) for name, flag in self.not_applied.items() if flag]:
            parts.append(f"{_listed(by_flag)} applied only by flags: {flags}")
        if without := [printable_name(name) for name, flag in self.not_applied.items() if not flag]:
            parts.append(f"{_listed(without)} not applied: rushlight has no equivalent")
        return f"{PurePath(self.file).name}: {'; '.join(parts)}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _not_applied(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that would change a text, in the order of the file, each with its flags."""
    samples, searches = values.get("do_sample") is True, (values.get("num_beams") or 1) != 1
    keys = _PLAIN | (_SAMPLED if samples else {}) | (_OF_BEAMS if searches else {})
    found = {}
    for key, value in values.items():
        if key == "do_sample" and samples:
            found[key] = "" if values.get("temperature") is not None else "--temperature 1"
        elif key in keys and value is not None and value not in keys[key][0]:
            found[key] = _flags(keys[key][1], value)
    if "temperature" in found:
        found.pop("do_sample")  # a temperature says it
    return found


def _flags(flag: str, value: Any) -> str:
    """A flag with its value, once for each of several."""
    each = value if isinstance(value, list) else [value]
    if not flag or not all(isinstance(one, str | int | float) for one in each):
        return ""
    return " ".join(f"{flag} {shlex.quote(str(one))}" for one in each)
