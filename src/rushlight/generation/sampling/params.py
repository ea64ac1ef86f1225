"""Sampling parameters: declares, validates and documents every setting of a request.

A new setting is a field of `SamplingParams`, and its type in `CompletionSettings`. The flags of `rushlight generate`,
`batch` and `chat`, `/set`, the fields of a batch job's lines, signatures and documentation derive from them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from rushlight.errors import RequestError
from rushlight.generation.sampling.philox import completion_seed, new_seed
from rushlight.generation.sampling.setting import (
    BOOLEAN,
    Range,
    biases,
    documented,
    grammar,
    integer,
    number,
    setting,
    settings_of,
    token_ids,
    unknown_setting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, Unpack

MAX_LOGIT_BIASES = 1024
MAX_SAMPLES = 128
"""The most completions of a prompt, as in OpenAI's API."""
MAX_GRAMMAR_CHARS = 1 << 18
"""The maximum length of a JSON schema or a pattern."""
MAX_LOGPROBS = 20
"""The most alternatives per token, as in OpenAI's API."""
MAX_ADJUSTMENT = 1e30
"""The largest penalty or bias: a float32 holds the sum of millions of them."""

_ADJUSTMENT = number(-MAX_ADJUSTMENT, MAX_ADJUSTMENT)
_TOP_P = number(0, 1)


class CompletionSettings(TypedDict, total=False):
    """The settings of one completion: `SamplingSettings` without `n`, which determines the type of a result."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    speculate: bool | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None


class SamplingSettings(CompletionSettings, total=False):
    """The keywords of `Model.generate`: the fields of `SamplingParams`. All are optional; None selects the default."""

    n: int | None


def without_none(settings: SamplingSettings) -> SamplingSettings:
    """The settings that are not None."""
    return cast("SamplingSettings", {name: value for name, value in settings.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The sampling parameters and stop conditions of a request. None selects the default of a field.

    Penalties, logit_bias, temperature, top_k, top_p and min_p are applied to the logits in this order. The repetition
    penalty is defined in Keskar et al., arXiv:1909.05858.

    {settings}

    Raises:
        RequestError: values are out of range; the message lists all of them.
    """

    max_tokens: int = setting(
        100,
        integer(0),
        "Generate at most N tokens.",
        metavar="N",
        flags="--max-tokens -n",
        group="Sampling",
        aliases="max_completion_tokens max_length max_new_tokens max_output_tokens n_predict num_predict",
        in_beam_search=True,
    )
    temperature: float = setting(
        0.0,
        number(0, sys.float_info.max, expected="a number of at least 0"),
        "Divide the logits by T; 0 always takes the most likely token.",
        metavar="T",
        flags="--temperature --temp",
        group="Sampling",
        aliases="do_sample temp",
    )
    top_k: int = setting(
        0,
        integer(0),
        "Sample from the K most likely tokens; 0 means all.",
        metavar="K",
        flags="--top-k",
        group="Sampling",
    )
    top_p: float = setting(
        1.0,
        Range(float, "a number above 0 and at most 1", lambda value: _TOP_P.contains(value) and value > 0),
        "Sample from the fewest tokens with a total probability of at least P.",
        metavar="P",
        flags="--top-p",
        group="Sampling",
    )
    min_p: float = setting(
        0.0,
        number(0, 1),
        "Sample from tokens at least P times as likely as the most likely one.",
        metavar="P",
        flags="--min-p",
        group="Sampling",
    )
    repetition_penalty: float = setting(
        1.0,
        number(1 / MAX_ADJUSTMENT, MAX_ADJUSTMENT),
        "Penalise tokens of the prompt and the output by the factor X; 1 means none.",
        metavar="X",
        flags="--repetition-penalty",
        group="Sampling",
        aliases="repeat_penalty",
        in_beam_search=True,
    )
    presence_penalty: float = setting(
        0.0,
        _ADJUSTMENT,
        "Subtract X from the logit of each token that is in the output.",
        metavar="X",
        flags="--presence-penalty",
        group="Sampling",
        in_beam_search=True,
    )
    frequency_penalty: float = setting(
        0.0,
        _ADJUSTMENT,
        "Subtract X from the logit of a token for each time it is in the output.",
        metavar="X",
        flags="--frequency-penalty",
        group="Sampling",
        in_beam_search=True,
    )
    logit_bias: Mapping[int, float] | None = setting(
        None,
        biases(MAX_LOGIT_BIASES, _ADJUSTMENT),
        "Add X to the logit of token ID.",
        metavar="ID=X",
        flags="--logit-bias",
        group="Sampling",
        in_beam_search=True,
    )
    seed: int | None = setting(
        None,
        integer(0, 2**64 - 1),
        "Seed of the random numbers, for reproducible output. Default: a random seed.",
        metavar="N",
        flags="--seed",
        group="Sampling",
        aliases="random_seed rng_seed",
    )
    stop_ids: Sequence[int] = setting(
        (),
        token_ids(),
        "Stop at these tokens too, besides the end-of-text token.",
        aliases="eos_token_id stop_token_ids",
        in_beam_search=True,
    )
    ignore_eos: bool = setting(
        False,
        BOOLEAN,
        "Continue after the end-of-text token.",
        flags="--ignore-eos",
        group="Sampling",
        in_beam_search=True,
    )
    n: int = setting(
        1,
        integer(1, MAX_SAMPLES),
        "Generate N outputs for the prompt, each with its own seed.",
        metavar="N",
        flags="--samples",
        group="Sampling",
        aliases="best_of num_return_sequences",
    )
    logprobs: int | None = setting(
        None,
        integer(0, MAX_LOGPROBS),
        "Return the log-probabilities of each token and of the K most likely tokens at its position.",
        metavar="K",
        flags="--logprobs",
        group="Output",
        aliases="top_logprobs",
    )
    prompt_logprobs: int | None = setting(
        None,
        integer(0, MAX_LOGPROBS),
        "Return the same log-probabilities for the tokens of the prompt.",
        metavar="K",
        flags="--prompt-logprobs",
        group="Output",
    )
    speculate: bool | None = setting(
        None,
        BOOLEAN,
        "Use speculative decoding, which does not change the output. Default: where it has been measured to be faster.",
        flags="--speculate/--no-speculate",
        group="Model",
    )
    json_schema: Mapping[str, Any] | str | None = setting(
        None,
        grammar("a JSON schema", MAX_GRAMMAR_CHARS, mapping=True),
        "Generate JSON that is valid under this schema; needs rushlight[constrain].",
        metavar="FILE",
        flags="--json-schema",
        group="Sampling",
        aliases="guided_json response_format",
    )
    regex: str | None = setting(
        None,
        grammar("a pattern", MAX_GRAMMAR_CHARS),
        "Generate text that matches this regular expression; needs rushlight[constrain].",
        metavar="PATTERN",
        flags="--regex",
        group="Sampling",
        aliases="guided_regex",
    )

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[SamplingSettings]) -> None: ...

    def __post_init__(self) -> None:
        problems = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                object.__setattr__(self, each.name, each.default)
            elif not SETTINGS[each.name].range.contains(value):
                problems.append(f"{each.name} is {short_repr(value)}, expected {SETTINGS[each.name].range.expected}")
        if self.json_schema is not None and self.regex is not None:
            problems.append("json_schema and regex are both set, expected only one of them")
        if problems:
            raise RequestError("; ".join(problems))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The parameters from a mapping of settings.

        Raises:
            RequestError: a setting is unknown, and the message suggests a similar one; or a value is out of range.
        """
        if not isinstance(settings, Mapping):
            raise RequestError(
                "settings must map names to values", found=short_repr(settings), remedy='write {"max_tokens": 20}'
            )
        if unknown := [unknown_setting(name, SETTINGS) for name in settings if name not in SETTINGS]:
            raise RequestError("; ".join(unknown))
        return cls(**settings)

    def per_completion(self) -> list[SamplingParams]:
        """The parameters of each of the n completions, with different seeds; the first has the request's.

        Only the first returns the log-probabilities of the prompt.
        """
        seed = new_seed() if self.seed is None else int(self.seed)
        return [
            replace(self, n=1, seed=completion_seed(seed, i), prompt_logprobs=self.prompt_logprobs if i == 0 else None)
            for i in range(self.n)
        ]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError for token ids that are not in the vocabulary."""
        unknown = sorted({i for i in (*(self.logit_bias or ()), *self.stop_ids) if i >= vocab_size})
        if unknown:
            raise RequestError(
                f"no such token: {', '.join(map(str, unknown[:10]))}",
                expected=f"ids from 0 to {vocab_size - 1}",
            )


SETTINGS = settings_of(SamplingParams)
"""The declaration of every setting, by name."""

SamplingParams.__doc__ = documented(SamplingParams.__doc__ or "", SamplingParams)

AnyFunction = TypeVar("AnyFunction", bound="Callable[..., Any]")


def takes_settings(function: AnyFunction) -> AnyFunction:
    """A decorator that lists the settings in the signature of a function that takes them as **settings.

    Notebooks and `help` read the signature; type checkers read `SamplingSettings`.
    """
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    settings = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(SamplingParams)
    ]
    function.__signature__ = signature.replace(parameters=[*named, *settings])  # type: ignore[attr-defined]
    return function
