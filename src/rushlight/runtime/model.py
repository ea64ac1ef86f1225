"""`Model`: generates text, scores it, and computes logits with a loaded checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import tee
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from rushlight.backends.batch import PREFILL_ROWS
from rushlight.errors import ContextLengthError, RequestError, RushlightError, TokenizerError
from rushlight.generation import (
    BeamSearch,
    Context,
    LanguageModel,
    Perplexity,
    SamplingParams,
    SamplingSettings,
    Scorer,
    takes_settings,
)
from rushlight.models.generation_config import GenerationConfig
from rushlight.nn import tapped
from rushlight.nn.trace import Trace, check_patches, check_patterns, patch_hook
from rushlight.runtime.execution import Execution
from rushlight.runtime.request import InputProcessor, PromptEncoder, Request
from rushlight.runtime.result import Beam, Generation, Score
from rushlight.runtime.streaming import AsyncStream, Stream, run_requests
from rushlight.text import StopStrings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend, Forward
    from rushlight.generation import CompletionSettings, EngineStats
    from rushlight.models import TextConfig
    from rushlight.nn import Module
    from rushlight.nn.tap import Hook
    from rushlight.nn.trace import Patch
    from rushlight.runtime.streaming import Completion
    from rushlight.text import Tokenizer

__all__ = ["Model"]

_instrumented: ContextVar[Mapping[Model, Execution] | None] = ContextVar("instrumented", default=None)
"""The executions of the models that are traced or patched in this thread or task."""


class Model:
    """A language model with its weights on a device; `rushlight.load` returns one.

    Threads may share it: concurrent requests run in one batch, and the output of each does not depend on the others.

    Attributes:
        module: the module tree, as in `model.module.h[0].attn.c_attn`.
        forward: the module in the form in which its device runs it fastest; on `cpu` with the same bits.
        config: the sizes, under the keys of config.json.
        tokenizer: None if the checkpoint has none.
        name: the hub id, or the name of the loaded folder or file without its path.
        n_parameters: the parameter count; a tied head counts once.
        eos_ids: the end-of-text tokens.
        suppressed_ids: tokens that are never sampled, because generation_config.json suppresses them.
        author: the author's generation settings; `author.sampling` is how `rushlight chat` samples.
        folder: the local folder of its files; None if it was not loaded from a folder.
        files: the paths of its weight files.
    """

    def __init__(
        self,
        *,
        module: Module,
        config: TextConfig,
        backend: Backend,
        tokenizer: Tokenizer | None,
        name: str,
        n_parameters: int,
        eos_ids: tuple[int, ...],
        suppressed_ids: tuple[int, ...] = (),
        begin_suppressed_ids: tuple[int, ...] = (),
        author: GenerationConfig | None = None,
        kv_bytes: int | None = None,
        folder: Path | None = None,
        no_tokenizer: TokenizerError | None = None,
        files: tuple[Path, ...] = (),
    ) -> None:
        self.module = module
        self.forward = backend.capture(module)
        self.config = config
        self.tokenizer = tokenizer
        self.name = name
        self.n_parameters = n_parameters
        self.eos_ids = eos_ids
        self.suppressed_ids = suppressed_ids
        self.author = GenerationConfig() if author is None else author
        self.folder = folder
        self.files = files
        self._backend = backend
        self._kv_bytes = kv_bytes
        self._no_tokenizer = no_tokenizer
        self._default = self._execution(module, self.forward)
        unused = [] if tokenizer is None else tokenizer.unused_ids(config.vocab_size)
        self._inputs = InputProcessor(
            config.vocab_size, config.context_length, (*unused, *suppressed_ids), begin_suppressed_ids
        )

    @property
    def device(self) -> str:
        """The device that computes; `reference` for NumPy, which also computes f64 on the CPU."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """The dtype of its weights, for display: bf16, or bf16/f32 where a checkpoint mixes them."""
        return self._backend.dtype_label

    @property
    def arithmetic(self) -> str:
        """The instruction set or device that the bits of results depend on; "exact" if they depend on neither."""
        return self._backend.arithmetic

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and completion together."""
        return self.config.context_length

    @property
    def language_model(self) -> LanguageModel:
        """The model as `rushlight.generation` runs it, traced or patched if it is so in this thread or task."""
        return self._current.language_model

    def engine_stats(self) -> EngineStats:
        """The engine's load (waiting and running sequences, KV blocks) and its totals."""
        return self._current.engine.stats()

    def use_draft(self, draft: Model | None) -> None:
        """Lets a smaller model propose draft tokens for speculative decoding; None removes it. Output is unchanged.

        Its keys and values count towards `kv_bytes`. Running requests finish as they started.

        Raises:
            TokenizerError: the two models have different vocabularies.
        """
        if draft is not None:
            fits = draft.config.vocab_size == self.config.vocab_size and draft.eos_ids == self.eos_ids
            if fits and self.tokenizer is not None and draft.tokenizer is not None:
                fits = draft.tokenizer.vocabulary() == self.tokenizer.vocabulary()
            if not fits:
                raise TokenizerError(
                    f"{draft.name} cannot draft for {self.name}: their tokens differ",
                    remedy="use a smaller model of the same family",
                )
        self._default = self._execution(self.module, self.forward, draft=draft)

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        n: None = None,
        **settings: Unpack[CompletionSettings],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        n: int,
        **settings: Unpack[CompletionSettings],
    ) -> list[Generation]: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> Generation | list[Generation]: ...

    @takes_settings
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> Generation | list[Generation]:
        """Continues a prompt; by default greedily and by at most 100 tokens.

        Args:
            prompt: text or token ids. Text is encoded with the tokens that the tokenizer adds before every text; token
                ids are used unchanged. An empty prompt starts from the end-of-text token. Special tokens in text are
                encoded as plain text; pass token ids to use them.
            stop: stop strings: the completion ends before the first of them.
            settings: the fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop_ids, ignore_eos, n,
                logprobs, prompt_logprobs, speculate, json_schema, regex. None selects the default, as for `stop`.

        Returns:
            One `Generation`; with `n`, a list of n of them, each with its own seed.

        Raises:
            RequestError: a setting or an id is out of range, or the prompt is too long for the context
                (ContextLengthError).
            MemoryLimitError: the keys and values of that many tokens do not fit in memory.
            TokenizerError: the prompt is text and the model has no tokenizer.
            GenerationError: the logits contain NaN or infinity.
        """
        [(_, result)] = self.generate_many([Request(prompt, stop, settings)])
        if isinstance(result, RushlightError):
            raise result
        return result

    @takes_settings
    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> Stream:
        """As `generate`, but returns a stream: of text, or of deltas for all n completions.

        Raises:
            RushlightError: as `generate`. An invalid request raises here, before the first iteration.
        """
        execution = self._current
        return Stream(execution.engine, self._completions(Request(prompt, stop, settings), execution))

    @takes_settings
    def astream(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> AsyncStream:
        """As `stream`, for `async for`: another thread computes while the event loop continues.

        Raises:
            RushlightError: as `stream`.
            QueueFullError: on the first iteration, if too many sequences are already waiting.
        """
        execution = self._current
        return AsyncStream(execution.engine, self._completions(Request(prompt, stop, settings), execution))

    @overload
    def generate_many(
        self,
        requests: Iterable[str | Sequence[int]],
        *,
        max_active: int = 16,
        stop: str | Sequence[str] | None = (),
        n: None = None,
        **settings: Unpack[CompletionSettings],
    ) -> Iterator[tuple[int, Generation | RushlightError]]: ...

    @overload
    def generate_many(
        self,
        requests: Iterable[Request | str | Sequence[int]],
        *,
        max_active: int = 16,
        stop: str | Sequence[str] | None = (),
        n: int,
        **settings: Unpack[CompletionSettings],
    ) -> Iterator[tuple[int, list[Generation] | RushlightError]]: ...

    @overload
    def generate_many(
        self,
        requests: Iterable[Request | str | Sequence[int]],
        *,
        max_active: int = 16,
        stop: str | Sequence[str] | None = (),
        n: None = None,
        **settings: Unpack[CompletionSettings],
    ) -> Iterator[tuple[int, Generation | list[Generation] | RushlightError]]: ...

    @takes_settings
    def generate_many(
        self,
        requests: Iterable[Request | str | Sequence[int]],
        *,
        max_active: int = 16,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> Iterator[tuple[int, Any]]:
        """Continues many prompts in batches, with the same output as one at a time.

        Args:
            requests: prompts as for `generate`, or `Request` objects, whose settings take precedence. Consumed as
                needed, at most `max_active` ahead of the results.
            max_active: the number of requests that run at the same time.
            stop, settings: as for `generate`, shared by all requests.

        Yields:
            (index of the request, its result), in the order in which they finish. The result is a `Generation`, a list
            of them if the request has `n`, or the error of a request that failed; the others continue.

        Raises:
            RequestError: a shared setting or max_active is out of range, or `requests` is a single prompt or not
                iterable.
        """
        if isinstance(requests, str | bytes) or not isinstance(requests, Iterable):
            raise RequestError(
                "generate_many expects several prompts",
                found=short_repr(requests),
                remedy="put them in a list, or use `generate` for one",
            )
        if not isinstance(max_active, int) or isinstance(max_active, bool) or max_active < 1:
            raise RequestError(f"max_active is {max_active!r}, expected an integer of at least 1")
        SamplingParams.of(settings)
        StopStrings(stop)
        execution = self._current

        def numbered() -> Iterator[tuple[tuple[int, bool], Callable[[], list[Completion]]]]:
            for index, item in enumerate(requests):
                request = item if isinstance(item, Request) else Request(item)
                request = request.with_defaults(stop, settings)
                yield (index, request.has_n), partial(self._completions, request, execution)

        return (
            (index, result if has_n or isinstance(result, RushlightError) else result[0])
            for (index, has_n), result in run_requests(execution.engine, numbered(), max_active)
        )

    def beam_search(
        self,
        prompt: str | Sequence[int],
        *,
        n_beams: int | None = 4,
        max_tokens: int | None = 100,
        length_penalty: float | None = 1.0,
        early_stopping: bool | Literal["never"] | None = False,
        n: int | None = 1,
        stop: str | Sequence[str] | None = (),
        stop_ids: Sequence[int] | None = (),
        ignore_eos: bool | None = False,
        repetition_penalty: float | None = 1.0,
        presence_penalty: float | None = 0.0,
        frequency_penalty: float | None = 0.0,
        logit_bias: Mapping[int, float] | None = None,
    ) -> list[Beam]:
        """Finds the most likely completions of a prompt by beam search, best first: transformers' algorithm.

        Args:
            prompt: as for `generate`.
            n_beams: prefixes kept at every step, at least 2; with one, it would be greedy `generate`.
            max_tokens: the most new tokens.
            length_penalty: completions are ranked by logprob / length ** length_penalty; above 0 favours long ones.
            early_stopping: True stops at n_beams finished completions; False when the best prefix, finished now, would
                not rank among them; "never" when it could not at any length.
            n: the number of completions to return, at most n_beams.
            stop: stop strings: a completion ends before the first of them.
            stop_ids: tokens that end a completion, besides the model's end-of-text tokens.
            ignore_eos: continue after end-of-text tokens.
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias: as in `SamplingParams`, but applied as
                in transformers: biases first, and to log-probabilities instead of logits.

        Raises:
            RequestError, TokenizerError, GenerationError: as `generate`.
        """
        self._require_causal()
        if self._current.is_instrumented:
            raise RequestError("a beam search cannot be traced or patched: its rows belong to many sequences")
        params = SamplingParams(
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            ignore_eos=ignore_eos,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
        )
        params.check_vocabulary(self.config.vocab_size)
        prompt_ids = self._prompts.encode_for_generation(prompt, params.max_tokens)
        strings = StopStrings(stop).strings
        all_stop_ids = {*params.stop_ids, *(() if params.ignore_eos else self.eos_ids)}
        optional: dict[str, Any] = {
            "n_beams": n_beams,
            "n": n,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
        }
        search = BeamSearch(
            **{name: value for name, value in optional.items() if value is not None},
            stop_ids=all_stop_ids,
            stops=self._prompts.stop_check(strings, prompt_ids),
            params=params,
            allowed=self._inputs.allowed,
            allowed_first=self._inputs.allowed_first,
        )
        found = search.run(self.language_model, prompt_ids)
        of = partial(Beam.of, tokenizer=self.tokenizer, stop_ids=all_stop_ids, stop=strings)
        return [of(hypothesis, prompt_ids) for hypothesis in found]

    def need_tokenizer(self, why: str, *, or_ids: bool = True) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: the model has none; the message begins with `why` it is needed.
        """
        return self._prompts.need_tokenizer(why, or_ids=or_ids)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a prompt, with the prefix that the tokenizer adds to text.

        Raises:
            RequestError, TokenizerError: as `generate`.
        """
        return self._prompts.encode(prompt)

    def logits(self, prompt: str | Sequence[int]) -> NDArray[np.floating]:
        """The logits after every token of a prompt: (T, V) float32.

        Raises:
            RequestError: no tokens, an id out of range, or more tokens than the context (ContextLengthError).
        """
        ids = self._prompts.encode(prompt)
        if not ids:
            raise RequestError("the prompt has no tokens to compute logits for")
        if len(ids) > self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, and the model's context is {self.context_length}"
            )
        in_one_chunk = self._current.is_instrumented or not self.module.causal
        context = Context(self.language_model, len(ids))
        return context.feed(ids, all_logits=True, chunk_rows=len(ids) if in_one_chunk else PREFILL_ROWS)

    @contextmanager
    def trace(self, *modules: str) -> Iterator[Trace]:
        """Records module outputs while this model computes inside the `with` block, in this thread.

            with model.trace() as t:
                model.logits("Once upon a time")
            t["h.3.mlp.c_fc"]  # (T, F) float32

        Outputs are bit-identical to a run without a trace. A prompt runs in one chunk: row i is position i.

        Args:
            modules: patterns of module paths to record, such as `h.*.attn`; all if there are none.

        Raises:
            RequestError: no module matches a pattern.
        """
        paths = [path for path, _ in self.module.named_modules()]
        check_patterns(modules, paths)
        trace = Trace(self._backend, modules)
        with self._instrument(trace.hook):
            yield trace

    @contextmanager
    def patch(self, patches: Mapping[str, Patch]) -> Iterator[None]:
        """Replaces module outputs while this model computes inside the `with` block, in this thread.

            with model.patch({"h.3.attn": lambda x: 0 * x}):
                model.generate("Once upon a time")

        Each function gets a float32 array (rows, C), which it may modify, and returns one of the same shape. A prompt
        runs in one chunk, so row i is position i; the new tokens follow, one row each.

        Args:
            patches: functions by module path, or by a pattern of paths as in `trace`: `h.*.attn`. If several match a
                module, each gets the result of the previous one.

        Raises:
            RequestError: no module matches, or a patch is not a function; and while the model computes, a patch
                returned another shape.
        """
        check_patches(patches, [path for path, _ in self.module.named_modules()])
        with self._instrument(patch_hook(self._backend, patches)):
            yield

    def score(self, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> Score:
        """The log-likelihood of `continuation` after `prompt`, as in lm-evaluation-harness.

        If both are text, they are encoded as in the harness: white space at the end of the prompt moves to the
        continuation, whose tokens are those of the joined text after the prompt's tokens. If a token spans the
        boundary, or only one of the two is text, each is encoded separately. Token ids are used unchanged. An empty
        prompt is the end-of-text token.

        Raises:
            RequestError: the continuation has no tokens, an id is out of range, or a token spans the boundary and
                encoding both separately changes the text; or their tokens exceed the context by more than one
                (ContextLengthError), since nothing is truncated.
            TokenizerError: one is text and the model has no tokenizer.
            GenerationError: the logits contain NaN or infinity.
        """
        return next(self.score_many([(prompt, continuation)]))

    def score_many(self, pairs: Iterable[tuple[str | Sequence[int], str | Sequence[int]]]) -> Iterator[Score]:
        """`score` for each (prompt, continuation) in batches, in order and with the same results.

        Reads dozens of pairs ahead. A common prefix of consecutive pairs, such as a question with several answers, is
        computed once.

        Raises:
            RequestError, TokenizerError, GenerationError: as `score`, after the scores of the preceding pairs.
        """
        if not isinstance(pairs, Iterable):
            raise RequestError("score_many expects pairs (prompt, continuation)", found=short_repr(pairs))
        encoded, read_ahead = tee(map(self._prompts.encode_pair, pairs))
        likelihoods = self._scorer(self.context_length).score_many(
            ([*prompt_ids, *ids], len(ids)) for prompt_ids, ids in read_ahead
        )
        for (logprobs, greedy), (prompt_ids, ids) in zip(likelihoods, encoded, strict=True):
            yield Score(prompt_ids, ids, logprobs.tolist(), bool(greedy.all()))

    def perplexity(
        self,
        text: Iterable[str] | Iterable[int],
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[Perplexity], object] | None = None,
    ) -> Perplexity:
        """The perplexity of a text of any length, over sliding windows.

        Args:
            text: the text, an iterable of its pieces, such as a file, or its token ids; consumed as needed. Pieces have
                the tokens of the joined text, wherever they are split (see `rushlight.text.encode_chunks`).
            window: tokens per window; None for the model's context.
            stride: tokens from one window to the next; None for 512, or the window if that is less. A smaller stride
                gives each token more context and takes longer.
            progress: called with the result so far after each window.

        Raises:
            RequestError: window, stride or an id is out of range, or there are fewer than two tokens.
            TokenizerError: the input is text and the model has no tokenizer.
            GenerationError: the logits contain NaN or infinity.
        """
        result = Perplexity.within(self.context_length, window, stride)
        ids = self._prompts.encode_stream(text, result)
        return self._scorer(result.window).perplexity(ids, result, progress)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model cannot be pickled or copied: its weights are on the device {self.device}; "
            f"in another process, load it again with rushlight.load(...)"
        )

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.n_parameters:,} parameters, {self.device}, {self.dtype}>"

    @property
    def _prompts(self) -> PromptEncoder:
        bos = self.config.bos_token_id
        start = bos if bos is not None else self.eos_ids[0] if self.eos_ids else None
        return PromptEncoder(
            self.name, self.tokenizer, self.config.vocab_size, self.context_length, start, self._no_tokenizer
        )

    @property
    def _current(self) -> Execution:
        """The execution of this model in this thread or task: the default, or an instrumented one."""
        return (_instrumented.get() or {}).get(self, self._default)

    def _completions(self, request: Request, execution: Execution) -> list[Completion]:
        self._require_causal()
        return self._inputs.completions(request, self._prompts, self.eos_ids, execution.engine)

    def _execution(
        self, module: Module, forward: Forward, *, draft: Model | None = None, is_instrumented: bool = False
    ) -> Execution:
        return Execution(
            module,
            LanguageModel.of(forward, self._backend, self.config),
            kv_bytes=self._kv_bytes,
            draft=None if draft is None else draft._default.language_model,
            is_instrumented=is_instrumented,
        )

    @contextmanager
    def _instrument(self, hook: Hook) -> Iterator[None]:
        """Runs the modules with a hook, in addition to the hooks that are already active."""
        module = tapped(self._current.module, hook)
        execution = self._execution(module, module, is_instrumented=True)
        token = _instrumented.set({**(_instrumented.get() or {}), self: execution})
        try:
            yield
        finally:
            _instrumented.reset(token)

    def _require_causal(self) -> None:
        if not self.module.causal:
            raise RequestError(
                f"{type(self.module).__name__} is not causal and cannot generate: each token attends to later ones",
                remedy="use `logits`, which computes its output for each token",
            )

    def _scorer(self, capacity: int) -> Scorer:
        self._require_causal()
        return Scorer(self.language_model, capacity, single_step=self._current.is_instrumented)
