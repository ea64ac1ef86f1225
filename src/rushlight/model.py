"""The object that a user holds: a loaded model that generates text and computes logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from rushlight.errors import ContextLengthError, RequestError, TokenizerError
from rushlight.generation import Context, Sampler, SamplingParams, decode
from rushlight.text import StopStrings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from typing import Unpack

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend
    from rushlight.generation import FinishReason, SamplingSettings, Token
    from rushlight.models.gpt2 import GPT2, GPT2Config
    from rushlight.text import Tokenizer


@dataclass(slots=True)
class Stats:
    """What a generation took: counts in tokens, times in seconds. Prefill ends with the first new token."""

    prompt_tokens: int
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """New tokens a second, the first not counted: it is the prefill's."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(slots=True)
class Generation:
    """A generated text.

    Attributes:
        prompt_ids: what the model was given; the end-of-text token for an empty prompt.
        ids: the new tokens, without the stop token.
        text: the new text, without the stop string; empty where the model has no tokenizer.
        finish_reason: "stop" (stop token or stop string), "length" (max_tokens) or "context" (the model's context is
            full); None if it was not run to its end.
        seed: the seed of the random numbers, also where none was given; None for greedy choice.
        stats: counts and times.
    """

    prompt_ids: list[int]
    seed: int | None
    stats: Stats
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None

    def __str__(self) -> str:
        return self.text


class Stream:
    """A text as it is generated: iterate for its pieces, none of them empty; `result` then holds the whole.

    A character is never broken between pieces, and a stop string never shown, not even its beginning.
    """

    def __init__(self, result: Generation, tokens: Iterator[Token], tokenizer: Tokenizer | None, stop: StopStrings):
        self.result = result
        self._pieces = self._run(tokens, tokenizer, stop)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation early."""
        self._pieces.close()

    def _run(self, tokens: Iterator[Token], tokenizer: Tokenizer | None, stop: StopStrings) -> Generator[str]:
        result, decoder = self.result, tokenizer.stream() if tokenizer else None
        for token in self._timed(tokens):
            result.finish_reason = token.finish_reason
            if token.finish_reason == "stop":
                break
            result.ids.append(token.id)
            piece, stopped = stop.push(decoder.push(token.id)) if decoder else ("", False)
            if piece:
                result.text += piece
                yield piece
            if stopped:
                result.finish_reason = "stop"
                return
        result.finish_reason = result.finish_reason or "length"  # of no tokens, where max_tokens is 0
        piece, stopped = stop.push(decoder.flush()) if decoder else ("", False)
        if stopped:
            result.finish_reason = "stop"
        else:
            piece += stop.flush()
        if piece:
            result.text += piece
            yield piece

    def _timed(self, tokens: Iterator[Token]) -> Iterator[Token]:
        """The tokens, with the time that each took to come; the time that a reader takes is not counted."""
        stats = self.result.stats
        start = perf_counter()
        for token in tokens:
            elapsed_s = perf_counter() - start
            if stats.prefill_s:
                stats.decode_s += elapsed_s
            else:
                stats.prefill_s = elapsed_s
            stats.generated_tokens += 1
            yield token
            start = perf_counter()


class Model:
    """A model with its weights, on its device; `rushlight.load` makes it. It keeps nothing of a run.

    Attributes:
        module: the tree of layers, `model.module.h[0].attn.c_attn`.
        forward: the module as its device runs it best; the same bits.
        config: the sizes, under config.json's keys.
        tokenizer: text to token ids and back; None if the checkpoint has none.
        name: what was loaded, in the user's word.
        n_parameters: a tied head counted once.
        eos_ids: the tokens that end a text.
    """

    def __init__(
        self,
        *,
        module: GPT2,
        config: GPT2Config,
        backend: Backend,
        tokenizer: Tokenizer | None,
        name: str,
        n_parameters: int,
        eos_ids: tuple[int, ...],
    ) -> None:
        self.module = module
        self.forward = backend.capture(module)
        self.config = config
        self.tokenizer = tokenizer
        self.name = name
        self.n_parameters = n_parameters
        self.eos_ids = eos_ids
        self._backend = backend
        self._barred = None
        if tokenizer is not None:
            barred = tokenizer.missing_ids(config.vocab_size)
            self._barred = np.array(barred, np.int32) if barred else None

    @property
    def device(self) -> str:
        """The word for where it computes."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """The word for what it computes in."""
        return self._backend.dtype

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and text can have together."""
        return self.config.context_length

    def generate(
        self, prompt: str | Sequence[int], *, stop: str | Sequence[str] = (), **settings: Unpack[SamplingSettings]
    ) -> Generation:
        """The text that goes on from a prompt: greedy and at most 100 tokens, unless the settings say otherwise.

        Args:
            prompt: text, or token ids. An empty one starts from the end-of-text token. Text that looks like a special
                token is plain text; as an id, a special token is itself.
            stop: strings that end the text; they are no part of it.
            settings: the fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop_ids, ignore_eos.

        Raises:
            RequestError: a setting or an id is out of its range, or the prompt is too long for the context
                (ContextLengthError).
            TokenizerError: there is text and the model has no tokenizer.
            GenerationError: the logits hold NaN or infinity.
        """
        stream = self.stream(prompt, stop=stop, **settings)
        for _ in stream:
            pass
        return stream.result

    def stream(
        self, prompt: str | Sequence[int], *, stop: str | Sequence[str] = (), **settings: Unpack[SamplingSettings]
    ) -> Stream:
        """As `generate`, piece by piece. What is wrong with the request is raised here, before the first piece."""
        params = SamplingParams(**settings)
        stops = StopStrings(stop)
        if stop and self.tokenizer is None:
            raise self._no_tokenizer("stop strings need a tokenizer")
        prompt_ids = self._ids(prompt) or [self._start_id()]
        if len(prompt_ids) >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten it by {len(prompt_ids) - self.context_length + 1} tokens or more",
            )
        sampler = Sampler(params, self.config.vocab_size, prompt_ids, self._barred, self._backend.sample)
        capacity = min(len(prompt_ids) + params.max_tokens, self.context_length)
        tokens = decode(
            Context(self.forward, self._backend, self.config.kv_shape, capacity),
            prompt_ids,
            sampler,
            max_tokens=params.max_tokens,
            context_length=self.context_length,
            stop_ids={*params.stop_ids, *(() if params.ignore_eos else self.eos_ids)},
        )
        seed = sampler.seed if params.temperature > 0 else None
        result = Generation(prompt_ids, seed, Stats(len(prompt_ids)))
        return Stream(result, tokens, self.tokenizer, stops)

    def logits(self, prompt: str | Sequence[int]) -> NDArray[np.floating]:
        """The model's logits after every token of a text or of token ids: (T, V), float32.

        Raises:
            RequestError: no tokens, an id out of range, or more tokens than the context (ContextLengthError).
        """
        ids = self._ids(prompt)
        if not ids:
            raise RequestError("there are no tokens to compute logits for")
        if len(ids) > self.context_length:
            raise ContextLengthError(f"there are {len(ids)} tokens, and the model's context is {self.context_length}")
        return Context(self.forward, self._backend, self.config.kv_shape, len(ids)).feed(ids, all_logits=True)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.n_parameters:,} parameters, {self.device}, {self.dtype}>"

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise self._no_tokenizer("the prompt is text")
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Iterable):
            raise RequestError("a prompt is text, or token ids", found=type(prompt).__name__)
        ids: list[int] = []
        for i in prompt:
            if not isinstance(i, Integral) or isinstance(i, bool):
                raise RequestError("a prompt is text, or token ids", found=repr(i))
            if not 0 <= i < self.config.vocab_size:
                raise RequestError(f"no such token: {i}", expected=f"ids from 0 to {self.config.vocab_size - 1}")
            ids.append(int(i))
        return ids

    def _start_id(self) -> int:
        start = self.eos_ids[0] if self.eos_ids else self.config.bos_token_id
        if start is None:
            raise RequestError("the prompt is empty, and the model has no end-of-text token to start from")
        return start

    def _no_tokenizer(self, why: str) -> TokenizerError:
        return TokenizerError(
            f"{why}, and {self.name} has no tokenizer",
            remedy="put its tokenizer.json, or vocab.json and merges.txt, beside the weights, or give token ids",
        )
