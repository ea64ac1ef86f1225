"""Turns requests into sequences for the engine: validates settings, encodes prompts, creates samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rushlight.errors import ContextLengthError, RequestError, TokenizerError
from rushlight.generation import (
    Sampler,
    SamplingParams,
    SamplingSettings,
    SequenceState,
    takes_settings,
    without_none,
)
from rushlight.runtime.result import Generation, Stats
from rushlight.runtime.streaming import Completion
from rushlight.text import StopStrings, encode_chunks
from rushlight.text.constraint import Grammars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self, Unpack

    from numpy.typing import NDArray

    from rushlight.generation import Engine, Perplexity
    from rushlight.text import Tokenizer
    from rushlight.text.constraint import Constraint

    Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True, init=False)
class Request:
    """A prompt with the arguments of `Model.generate`: `Request("Once", max_tokens=20, stop=".")`.

    It is validated when it is run, so that an invalid request does not stop the others.

    Attributes:
        prompt: text, or token ids.
        stop: stop strings.
        settings: the sampling settings, from the mapping `settings` and from keywords, which take precedence.
    """

    prompt: str | Sequence[int]
    stop: str | Sequence[str] | None
    settings: SamplingSettings

    @takes_settings
    def __init__(
        self,
        prompt: str | Sequence[int],
        stop: str | Sequence[str] | None = (),
        settings: SamplingSettings | None = None,
        **keywords: Unpack[SamplingSettings],
    ) -> None:
        merged: Any = settings or {}
        if keywords and isinstance(merged, Mapping):
            merged = {**merged, **keywords}
        for name, value in (("prompt", prompt), ("stop", stop), ("settings", merged)):
            object.__setattr__(self, name, value)

    def with_defaults(self, stop: str | Sequence[str] | None, settings: SamplingSettings) -> Self:
        """The request with these stop strings and settings where it has none."""
        own: Any = self.settings  # of any type until it is validated
        has_stop = self.stop is not None and not (isinstance(self.stop, tuple) and not self.stop)
        if isinstance(own, Mapping):
            own = {**settings, **without_none(cast("SamplingSettings", own))}
        return type(self)(self.prompt, self.stop if has_stop else stop, own)

    @property
    def has_n(self) -> bool:
        """Whether it sets `n`; its result is a list then."""
        return isinstance(self.settings, Mapping) and self.settings.get("n") is not None


class InputProcessor:
    """Turns the requests to one model into sequences for its engine.

    Args:
        vocab_size: V.
        context_length: the most tokens of prompt and completion.
        suppressed_ids: tokens that are never sampled.
        begin_suppressed_ids: tokens that are not sampled as the first new token.

    Attributes:
        allowed: (V,) the tokens that may be sampled; None for all.
        allowed_first: (V,) `allowed` for the first new token; None if it does not differ.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        suppressed_ids: Sequence[int] = (),
        begin_suppressed_ids: Sequence[int] = (),
    ) -> None:
        self._vocab_size = vocab_size
        self._context_length = context_length
        self.allowed = self._all_but(suppressed_ids)
        self.allowed_first = self._all_but((*suppressed_ids, *begin_suppressed_ids)) if begin_suppressed_ids else None
        self._grammars: tuple[Tokenizer, tuple[int, ...], Grammars] | None = None

    def completions(
        self, request: Request, prompts: PromptEncoder, eos_ids: tuple[int, ...], engine: Engine
    ) -> list[Completion]:
        """The n completions of a request, validated and ready to be submitted.

        Args:
            request: the request, not validated yet.
            prompts: encodes its prompt.
            eos_ids: the model's end-of-text tokens.
            engine: the engine that will run it.

        Raises:
            RushlightError: as `Model.generate`.
        """
        params = SamplingParams.of(request.settings)
        if StopStrings(request.stop):
            prompts.need_tokenizer("stop strings need a tokenizer", or_ids=False)
        prompt_ids = prompts.encode_for_generation(request.prompt, params.max_tokens)
        stop_ids = {*params.stop_ids, *(() if params.ignore_eos else eos_ids)}
        constraint = self.constraint(params, prompts, eos_ids)
        if constraint is not None:
            stop_ids.update(eos_ids)  # a grammar allows them where the output is complete
        completions = []
        for index, own in enumerate(params.per_completion()):
            sampler = Sampler(
                own,
                self._vocab_size,
                prompt_ids,
                self.allowed,
                constraint and constraint.copy(),
                allowed_first=self.allowed_first,
            )
            sequence = SequenceState(
                prompt_ids,
                sampler,
                max_tokens=own.max_tokens,
                context_length=self._context_length,
                stop_ids=stop_ids,
            )
            engine.check_capacity(sequence)
            result = Generation(
                prompt_ids,
                sampler.seed if own.temperature > 0 else None,
                Stats(len(prompt_ids)),
                logprobs=None if own.logprobs is None else [],
            )
            completions.append(Completion(index, sequence, result, prompts.tokenizer, StopStrings(request.stop)))
        return completions

    def constraint(self, params: SamplingParams, prompts: PromptEncoder, eos_ids: tuple[int, ...]) -> Constraint | None:
        """The constraint of json_schema or regex; None if neither is set.

        Raises:
            LibraryError, RequestError, TokenizerError: as `rushlight.text.constraint.Grammars`.
        """
        if params.json_schema is None and params.regex is None:
            return None
        tokenizer = prompts.need_tokenizer("json_schema and regex need a tokenizer", or_ids=False)
        if self._grammars is None or self._grammars[:2] != (tokenizer, eos_ids):
            self._grammars = tokenizer, eos_ids, Grammars(tokenizer, self._vocab_size, eos_ids)
        grammars = self._grammars[2]
        return grammars.json_schema(params.json_schema or {}) if params.regex is None else grammars.regex(params.regex)

    def _all_but(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        if not ids:
            return None
        allowed = np.ones(self._vocab_size, np.bool_)
        allowed[list(ids)] = False
        return allowed


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes and validates prompts for one model.

    Attributes:
        name: the model's name, for error messages.
        tokenizer: None if the model has none and takes only token ids.
        vocab_size: V.
        context_length: the most tokens of a sequence.
        start_id: the token that replaces an empty prompt; None if the model has no such token.
        no_tokenizer: the error to raise if a tokenizer is needed, if the tokenizer files have one.
    """

    name: str
    tokenizer: Tokenizer | None
    vocab_size: int
    context_length: int
    start_id: int | None
    no_tokenizer: TokenizerError | None = None

    def need_tokenizer(self, why: str, *, or_ids: bool = True) -> Tokenizer:
        """The tokenizer.

        Args:
            why: why it is needed.
            or_ids: whether token ids would do instead.

        Raises:
            TokenizerError: the model has none; the message begins with `why` it is needed.
        """
        if self.no_tokenizer is not None:
            raise TokenizerError(
                f"{why}, and {self.no_tokenizer.message}",
                file=self.no_tokenizer.file,
                remedy=f"{'give token ids, or ' if or_ids else ''}{self.no_tokenizer.remedy}",
            )
        if self.tokenizer is None:
            remedy = "put its tokenizer.json, or vocab.json and merges.txt, next to the weights"
            if "/" in self.name:
                remedy += f" (`rushlight pull {self.name}` downloads what the hub has)"
            if or_ids:
                remedy += ", or give token ids, in Python or to `rushlight batch`"
            raise TokenizerError(f"{why}, and {self.name} has no tokenizer.json", remedy=remedy)
        return self.tokenizer

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt: of text with the prefix that the tokenizer adds; token ids are unchanged.

        Raises:
            RequestError: it is not a single prompt, or has a token outside the model's vocabulary.
            TokenizerError: the prompt is text and the model has no tokenizer.
        """
        if isinstance(prompt, str):
            return [*self.prefix("the prompt is text"), *self.encode_bare(prompt)]
        expected = "expected a prompt as text or token ids"
        ids: list[int] = []
        items: Iterator[int] = _iterate(prompt, expected)
        for i in items:
            if not isinstance(i, Integral) or isinstance(i, bool):
                is_prompt = isinstance(i, str | Sequence) or getattr(i, "ndim", 0) == 1
                remedy = "this takes a single prompt; `generate_many` takes several" if is_prompt else None
                raise RequestError(expected, found=short_repr(i), remedy=remedy)
            if not 0 <= i < self.vocab_size:
                raise RequestError(f"no such token: {i}", expected=f"ids from 0 to {self.vocab_size - 1}")
            ids.append(int(i))
        return ids

    def prefix(self, why: str) -> list[int]:
        """The tokens that the tokenizer adds before every text, such as a beginning-of-text token.

        Raises:
            RequestError: they are outside the model's vocabulary.
            TokenizerError: the model has no tokenizer; the message begins with `why` it is needed.
        """
        return list(self._in_vocabulary(self.need_tokenizer(why).prefix_ids))

    def encode_bare(self, text: str) -> list[int]:
        """The token ids of a text without the tokenizer's prefix.

        Raises:
            RequestError, TokenizerError: as `encode`.
        """
        tokenizer = self.need_tokenizer("the prompt is text")
        return list(self._in_vocabulary(tokenizer.encode(text)))

    def _in_vocabulary(self, ids: Iterable[int]) -> Iterator[int]:
        for i in ids:
            if i >= self.vocab_size:
                raise RequestError(
                    f'the token "{self.tokenizer and self.tokenizer.decode([i])}", {i}, is outside the model\'s '
                    "vocabulary",
                    expected=f"ids from 0 to {self.vocab_size - 1}",
                )
            yield i

    def encode_or_start(self, prompt: Prompt) -> list[int]:
        """As `encode`, with the start token for an empty prompt.

        Raises:
            RequestError: the prompt is empty and the model has no start token; or as `encode`.
        """
        ids = self.encode(prompt)
        if ids:
            return ids
        if self.start_id is None:
            raise RequestError("the prompt is empty, and the model has no end-of-text token to start from")
        return [self.start_id]

    def encode_for_generation(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """As `encode_or_start`, and checks that there is room for a new token, unless max_tokens is 0.

        Raises:
            ContextLengthError: the prompt is too long; or as `encode_or_start`.
        """
        ids = self.encode_or_start(prompt)
        limit = self.context_length - (1 if max_tokens else 0)
        if len(ids) > limit:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten it by {len(ids) - limit} tokens or more",
            )
        return ids

    def encode_pair(self, pair: object) -> tuple[list[int], list[int]]:
        """The token ids of a prompt and of its continuation, encoded as one text if both are text.

        As in lm-evaluation-harness, white space at the end of the prompt moves to the continuation, whose tokens are
        those of the joined text after the prompt's tokens. If a token spans the boundary, so that the joined text does
        not begin with the prompt's tokens, the continuation is encoded separately.

        Raises:
            RequestError: it is not a pair; the continuation has no tokens; a token spans the boundary, and encoding
                both separately changes the text; or they are too long (ContextLengthError).
            TokenizerError: as `encode`.
        """
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise RequestError("expected a pair (prompt, continuation)", found=short_repr(pair))
        prompt, continuation = pair
        if isinstance(prompt, str) and isinstance(continuation, str):
            prompt_ids = self.encode(prompt.rstrip())
            ids = self._encode_after(prompt_ids, prompt + continuation, prompt[len(prompt.rstrip()) :] + continuation)
        else:
            prompt_ids = self.encode(prompt)
            ids = self.encode_bare(continuation) if isinstance(continuation, str) else self.encode(continuation)
        prompt_ids = prompt_ids or self.encode_or_start(prompt_ids)
        if not ids:
            raise RequestError("the continuation has no tokens")
        n_ids = len(prompt_ids) + len(ids)
        if n_ids > self.context_length + 1:
            raise ContextLengthError(
                f"prompt and continuation have {n_ids} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten them by {n_ids - self.context_length - 1} tokens or more",
            )
        return prompt_ids, ids

    def _encode_after(self, prompt_ids: list[int], joined: str, continuation: str) -> list[int]:
        """The ids of the joined text after those of its prompt."""
        joined_ids = self.encode(joined)
        if joined_ids[: len(prompt_ids)] == prompt_ids:
            return joined_ids[len(prompt_ids) :]
        ids, decode = self.encode_bare(continuation), self.need_tokenizer("the prompt is text").decode
        if decode([*prompt_ids, *ids]) != decode(joined_ids):
            raise RequestError(
                "a token spans the boundary of prompt and continuation, and encoding them separately changes the text",
                expected=repr(decode(joined_ids)[-40:]),
                found=repr(decode([*prompt_ids, *ids])[-40:]),
                remedy="split the text at the beginning of a word, or give token ids",
            )
        return ids

    def stop_check(self, stop: Sequence[str], prompt_ids: Sequence[int]) -> Callable[[Sequence[int]], bool] | None:
        """A function that tests whether new tokens contain a stop string; None without stop strings.

        Raises:
            TokenizerError: the model has no tokenizer.
        """
        if not stop:
            return None
        decode = self.need_tokenizer("stop strings need a tokenizer", or_ids=False).decode

        def stops(ids: Sequence[int]) -> bool:
            text = decode(ids, before=prompt_ids)
            return any(string in text for string in stop)

        return stops

    def encode_stream(self, text: Iterable[str] | Iterable[int], result: Perplexity) -> Iterator[int]:
        """The token ids of a text of any length, encoded lazily and with the tokenizer's prefix.

        Args:
            text: the text, its pieces, or its token ids, which are passed through; consumed as needed.
            result: receives the number of bytes, and of tokens in the prefix.
        """
        expected = "expected a text as a string, an iterable of its pieces, or token ids"
        items: Iterator[Any] = iter([text]) if isinstance(text, str) else _iterate(text, expected)
        nothing = object()
        first = next(items, nothing)
        if first is nothing:
            return
        items = chain([first], items)
        if not isinstance(first, str):
            for i in items:
                yield from self.encode([i])
            return

        def counted() -> Iterator[str]:
            for piece in items:
                if not isinstance(piece, str):
                    raise RequestError(expected, found=f"{short_repr(piece)} among its pieces")
                result.count_bytes(len(piece.encode(errors="surrogatepass")))
                yield piece

        tokenizer, prefix = self.need_tokenizer("the input is text"), self.prefix("the input is text")
        result.n_prefix = len(prefix)
        yield from prefix
        yield from self._in_vocabulary(encode_chunks(tokenizer, counted()))


def _iterate(value: object, expected: str) -> Iterator[Any]:
    """The items of an iterable.

    Raises:
        RequestError: it is not iterable; the message begins with `expected`.
    """
    if not isinstance(value, bytes | bytearray | Mapping):  # iterating bytes would give numbers that look like ids
        with suppress(TypeError):
            return iter(cast("Iterable[Any]", value))
    raise RequestError(expected, found=type(value).__name__)
