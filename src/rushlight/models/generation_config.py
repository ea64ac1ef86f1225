"""Reads generation_config.json, or the same keys in an older config.json.

Only end-of-sequence and suppressed tokens are applied to every request. `rushlight chat` also samples as the author
does. All other settings are left to the caller; those that would change the output are reported once, with the flags
that apply them. Keys and neutral values are those of transformers 4 and 5 (generation/configuration_utils.py).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from rushlight.errors import printable_name
from rushlight.models.schema import Fields

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rushlight.generation import SamplingSettings

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
"""Key -> its neutral values, and the flag with the same effect; "" if there is none."""
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
"""The same for keys that apply only with `do_sample`."""
_OF_BEAMS: dict[str, tuple[tuple[Any, ...], str]] = {
    "length_penalty": ((1,), ""),
    "early_stopping": ((False,), ""),
    "num_beam_groups": ((1,), ""),
    "diversity_penalty": ((0,), ""),
}
"""The same for keys that apply only with `num_beams`."""
_OF_CHAT = ("repetition_penalty", "presence_penalty", "frequency_penalty")
"""Keys that a chat applies; with `do_sample` also those of `_OF_SAMPLED_CHAT`."""
_OF_SAMPLED_CHAT = ("temperature", "top_k", "top_p", "min_p")

GENERATION_KEYS = frozenset(
    {*_PLAIN, *_SAMPLED, *_OF_BEAMS, "do_sample", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"}
    | {"remove_invalid_values", "renormalize_logits", "output_scores", "return_dict_in_generate"}
)
"""The keys of generation settings, which transformers 4 kept in config.json."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """A model author's settings for generation.

    Attributes:
        eos_token_id: the tokens that end a sequence.
        suppress_tokens: tokens that are never generated: `suppress_tokens`, and `bad_words_ids` of one token each.
        begin_suppress_tokens: tokens that are not generated as the first.
        not_applied: keys that would change the output and are not applied -> the flags that apply them, or "" if
            rushlight has no equivalent.
        sampling: how the author samples, for those who want it: some of temperature, top_k, top_p, min_p and the
            penalties. Temperature is 0 where `do_sample` is false. Values that are out of range are left out.
        file: the file that has them.
    """

    eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    not_applied: Mapping[str, str] = field(default_factory=dict)
    sampling: SamplingSettings = field(default_factory=lambda: cast("SamplingSettings", {}))
    file: str = "generation_config.json"

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], *, vocab_size: int, eos_token_id: tuple[int, ...], file: str
    ) -> GenerationConfig:
        """Reads a generation_config.json, or the generation keys of a config.json, as transformers does.

        Args:
            values: the members of the file.
            vocab_size: V; token ids beyond it are dropped.
            eos_token_id: config.json's, used if the file has none, as in vLLM; transformers would generate up to the
                maximum length.
            file: its path, for error messages.

        Raises:
            ConfigError: keys are mistyped, or suppress every token. The message lists them all.
        """
        fields = Fields(values, file)
        ends = fields.token_ids("eos_token_id", vocab_size) or eos_token_id
        never = fields.token_ids("suppress_tokens", vocab_size)
        at_first = fields.token_ids("begin_suppress_tokens", vocab_size)
        words = fields.token_sequences("bad_words_ids")
        # transformers ignores a bad word that is just the end-of-sequence token.
        never += tuple(word[0] for word in words if len(word) == 1 and word[0] < vocab_size and word[0] not in ends)
        if len({*never, *at_first}) == vocab_size:
            fields.problem("suppress_tokens, begin_suppress_tokens and bad_words_ids suppress every token")
        fields.finish(benign=values)
        not_applied = _not_applied(values)
        if any(len(word) > 1 for word in words):
            not_applied["bad_words_ids of several tokens"] = ""
        return cls(
            eos_token_id=ends,
            suppress_tokens=tuple(sorted({*never})),
            begin_suppress_tokens=tuple(sorted({*at_first})),
            not_applied=not_applied,
            sampling=_sampling(values),
            file=file,
        )

    def describe_not_applied(self) -> str:
        """A sentence that lists the keys that are not applied by default, and the flags that apply them."""
        return self._describe(self.not_applied, [])

    def describe_chat(self, given: Collection[str]) -> str:
        """The same for a chat, which samples as the author does; empty if there is nothing to say.

        Args:
            given: the settings that the user chose instead.
        """
        used = {name: value for name, value in self.sampling.items() if name not in given}
        shown = ", ".join(f"{name} {value}" for name, value in used.items())
        sampled = {*self.sampling, "do_sample"} if self.sampling else set()
        others = {name: flag for name, flag in self.not_applied.items() if name not in sampled}
        parts = [f"the author's settings are used: {shown}; flags change them"] if used else []
        return self._describe(others, parts) if parts or others else ""

    def _describe(self, not_applied: Mapping[str, str], parts: list[str]) -> str:
        flags = " ".join(flag for flag in not_applied.values() if flag)
        if by_flag := [printable_name(name) for name, flag in not_applied.items() if flag]:
            parts.append(f"{_listed(by_flag)} applied only by flags: {flags}")
        if without := [printable_name(name) for name, flag in not_applied.items() if not flag]:
            parts.append(f"{_listed(without)} not applied: rushlight has no equivalent")
        return f"{PurePath(self.file).name}: {'; '.join(parts)}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _not_applied(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that would change the output -> the flags that apply them, in the order of the file."""
    samples, searches = values.get("do_sample") is True, (values.get("num_beams") or 1) != 1
    keys = _PLAIN | (_SAMPLED if samples else {}) | (_OF_BEAMS if searches else {})
    found = {}
    for key, value in values.items():
        if key == "do_sample" and samples:
            found[key] = "" if values.get("temperature") is not None else "--temperature 1"
        elif key in keys and value is not None and value not in keys[key][0]:
            found[key] = _flags(keys[key][1], value)
    if "temperature" in found:
        found.pop("do_sample")  # implied by a temperature
    return found


def _sampling(values: Mapping[str, Any]) -> SamplingSettings:
    """How the author samples, without values that are out of range."""
    from rushlight.generation.sampling.params import SETTINGS

    found: dict[str, Any] = {}
    if values.get("do_sample") is True:
        found = {"temperature": 1.0} | {key: values[key] for key in _OF_SAMPLED_CHAT if values.get(key) is not None}
    elif values.get("do_sample") is False:
        found = {"temperature": 0.0}
    neutral = _PLAIN | _SAMPLED
    found |= {key: values[key] for key in _OF_CHAT if values.get(key) is not None}
    found = {key: value for key, value in found.items() if value not in neutral[key][0]}
    in_range = {key: value for key, value in found.items() if SETTINGS[key].range.contains(value)}
    return cast("SamplingSettings", in_range)


def _flags(flag: str, value: Any) -> str:
    """A flag with its value, repeated for each of several values."""
    each = value if isinstance(value, list) else [value]
    if not flag or not all(isinstance(one, str | int | float) for one in each):
        return ""
    return " ".join(f"{flag} {shlex.quote(str(one))}" for one in each)
