"""What a caller may ask of the choice of tokens, checked before anything runs."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Rational, Real
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from rushlight.errors import RequestError
from rushlight.generation.sampling.philox import new_seed, seed_of_text
from rushlight.generation.sampling.setting_names import unknown_setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, Unpack

MAX_LOGIT_BIASES = 1024
MAX_TEXTS = 128
"""Of one prompt; the most that OpenAI's API gives too."""
MAX_GRAMMAR_CHARS = 1 << 18
"""Of a JSON schema or a pattern."""
MAX_LOGPROBS = 20
"""Alternatives to a token; the most that OpenAI's API gives too."""
MAX_CHANGE = 1e30
"""Of a logit, by a penalty or a bias: a float32 holds millions of them together."""
_SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of pairs, as which bytes of the command line that are not UTF-8 arrive too."""


class CompletionSettings(TypedDict, total=False):
    """The settings of one completion: those of SamplingSettings without `n`, which decides the type of a result."""

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
    """The keywords of `Model.generate`: the fields of SamplingParams, all optional; None means not given."""

    n: int | None


def given(settings: SamplingSettings) -> SamplingSettings:
    """The settings without those that are None."""
    return cast("SamplingSettings", {name: value for name, value in settings.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    In the order they are applied to the logits: penalties, bias, temperature, top-k, top-p, min-p. For a value of None
    the default holds.

    Attributes:
        max_tokens: at most so many new tokens; the model's context may end it earlier.
        temperature: logits are divided by it; 0 takes the likeliest token and draws nothing.
        top_k: draw from the k likeliest; 0 is all.
        top_p: draw from the fewest tokens that have at least this probability together, in (0, 1].
        min_p: draw from tokens at least so likely as this share of the likeliest, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt and the text so far
            (Keskar et al., arXiv:1909.05858); 1 is none.
        presence_penalty: taken from the logit of each token in the text so far, the prompt not counted.
        frequency_penalty: the same, as many times as the token stands there.
        logit_bias: added to logits, by token id.
        seed: of the random numbers, in [0, 2⁶⁴); None draws one.
        stop_ids: tokens that end the text, beside the model's end-of-text token.
        ignore_eos: go on through the end-of-text token.
        n: how many texts of one prompt, each with a seed of its own.
        logprobs: how likely each token was, with so many alternatives (see `TokenLogprob`); None is not at all.
        prompt_logprobs: the same of the prompt's tokens.
        speculate: guess tokens and check several in one step, which changes no text: None where that is measured to be
            faster, true wherever there is a guess, false never.
        json_schema: the text is JSON that this schema accepts, so far as it goes before max_tokens; a mapping, or JSON.
        regex: the text matches this pattern as a whole, in the same sense.

    Raises:
        RequestError: values out of their ranges, all of them in one message.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop_ids: Sequence[int] = field(default=())
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    speculate: bool | None = None
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[SamplingSettings]) -> None: ...

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) is None:
                object.__setattr__(self, each.name, each.default)
        problems = [
            f"{name} is {short_repr(getattr(self, name))}: it should be {wanted}"
            for name, (wanted, fits) in _CHECKS.items()
            if not fits(getattr(self, name))
        ]
        if self.json_schema is not None and self.regex is not None:
            problems.append("json_schema and regex are both given: it should be one of them")
        if problems:
            raise RequestError("; ".join(problems))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The parameters that a caller's settings say.

        Raises:
            RequestError: a name is unknown, and then the nearest one is named; or a value is out of its range.
        """
        if not isinstance(settings, Mapping):
            raise RequestError(
                "settings map names to values", found=short_repr(settings), remedy='as {"max_tokens": 20}'
            )
        known = [field.name for field in fields(cls)]
        if unknown := [unknown_setting(name, known) for name in settings if name not in known]:
            raise RequestError("; ".join(unknown))
        return cls(**settings)

    def of_each_text(self) -> list[SamplingParams]:
        """These for each of the n texts, each with its own seed; that of the first is the one that was given.

        The prompt is scored with the first alone.
        """
        seed = new_seed() if self.seed is None else int(self.seed)
        return [
            replace(self, n=1, seed=seed_of_text(seed, i), prompt_logprobs=self.prompt_logprobs if i == 0 else None)
            for i in range(self.n)
        ]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError if a token id named here is none of the model's."""
        strangers = sorted({i for i in (*(self.logit_bias or ()), *self.stop_ids) if i >= vocab_size})
        if strangers:
            raise RequestError(
                f"no such token: {', '.join(map(str, strangers[:10]))}",
                expected=f"ids from 0 to {vocab_size - 1}",
            )


AnyFunction = TypeVar("AnyFunction", bound="Callable[..., Any]")


def takes_settings(function: AnyFunction) -> AnyFunction:
    """Shows the settings that a function takes as **settings in its signature, by name, with their defaults.

    Type checkers read them off SamplingSettings; notebooks complete, and `help` shows, what the signature has.
    """
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    settings = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(SamplingParams)
    ]
    function.__signature__ = signature.replace(parameters=[*named, *settings])  # type: ignore[attr-defined]
    return function


def _whole(value: Any, at_least: int, at_most: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and at_least <= int(value) <= at_most


def _number(value: Any, at_least: float, at_most: float) -> bool:
    """Whether it is a number in the range."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    # An int may be too large for a float, and the range too large for NumPy's narrower floats.
    exact: Any = value if isinstance(value, Rational) else float(value)
    return bool(at_least <= exact <= at_most)


def _change(value: Any) -> bool:
    return _number(value, -MAX_CHANGE, MAX_CHANGE)


def _grammar(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_GRAMMAR_CHARS and not _SURROGATES.search(value)


def _biases(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and len(value) <= MAX_LOGIT_BIASES
        and all(_whole(i, 0) and _change(bias) for i, bias in value.items())
    )


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_tokens": ("a whole number, 0 or more", lambda value: _whole(value, 0)),
    "temperature": ("a number, 0 or more", lambda value: _number(value, 0, sys.float_info.max)),
    "top_k": ("a whole number, 0 or more", lambda value: _whole(value, 0)),
    "top_p": ("above 0 and at most 1", lambda value: _number(value, 0, 1) and value > 0),
    "min_p": ("from 0 to 1", lambda value: _number(value, 0, 1)),
    "repetition_penalty": (
        f"from {1 / MAX_CHANGE:g} to {MAX_CHANGE:g}",
        lambda value: _number(value, 1 / MAX_CHANGE, MAX_CHANGE),
    ),
    "presence_penalty": (f"from {-MAX_CHANGE:g} to {MAX_CHANGE:g}", _change),
    "frequency_penalty": (f"from {-MAX_CHANGE:g} to {MAX_CHANGE:g}", _change),
    "logit_bias": (
        f"at most {MAX_LOGIT_BIASES} token ids, each with a number from {-MAX_CHANGE:g} to {MAX_CHANGE:g}",
        _biases,
    ),
    "seed": ("from 0 to 2^64 - 1", lambda value: value is None or _whole(value, 0, 2**64 - 1)),
    "stop_ids": ("token ids", lambda value: isinstance(value, Collection) and all(_whole(i, 0) for i in value)),
    "ignore_eos": ("true or false", lambda value: isinstance(value, bool)),
    "n": (f"from 1 to {MAX_TEXTS}", lambda value: _whole(value, 1, MAX_TEXTS)),
    "logprobs": (f"from 0 to {MAX_LOGPROBS}", lambda value: value is None or _whole(value, 0, MAX_LOGPROBS)),
    "speculate": ("true or false", lambda value: value is None or isinstance(value, bool)),
    "json_schema": (
        f"a JSON schema of at most {MAX_GRAMMAR_CHARS:,} Unicode characters",
        lambda value: value is None or isinstance(value, Mapping) or _grammar(value),
    ),
    "regex": (
        f"a pattern of at most {MAX_GRAMMAR_CHARS:,} Unicode characters",
        lambda value: value is None or _grammar(value),
    ),
    "prompt_logprobs": (f"from 0 to {MAX_LOGPROBS}", lambda value: value is None or _whole(value, 0, MAX_LOGPROBS)),
}
