"""The object that a user holds: a loaded model that generates text and computes logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from reprlib import repr as short_repr
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from rushlight.errors import ContextLengthError, RequestError, RushlightError, TokenizerError
from rushlight.generation import (
    BeamSearch,
    Context,
    Engine,
    LanguageModel,
    Perplexity,
    Sampler,
    SamplingParams,
    SamplingSettings,
    Scorer,
    SequenceState,
    sliding_windows,
    takes_settings,
)
from rushlight.generation.runner import PREFILL_ROWS
from rushlight.nn import tapped
from rushlight.nn.trace import Trace, check_patches, check_patterns, patch_hook
from rushlight.runtime.execution import Running
from rushlight.runtime.request import Prompts
from rushlight.runtime.result import AsyncStream, Beam, Generation, Score, Stats, Stream, Writer, write_many
from rushlight.text import StopStrings
from rushlight.text.constraint import Grammars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Unpack

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend, Forward
    from rushlight.generation import FinishReason
    from rushlight.models import Config
    from rushlight.nn import Module
    from rushlight.nn.tap import Hook
    from rushlight.nn.trace import Patch
    from rushlight.text import Tokenizer
    from rushlight.text.constraint import Constraint

__all__ = ["AsyncStream", "Beam", "Generation", "Model", "Request", "Score", "Stats", "Stream"]


@dataclass(frozen=True, slots=True, init=False)
class Request:
    """One of many prompts, with what `Model.generate` takes beside it: `Request("Once", max_tokens=20, stop=".")`.

    It is checked when it is generated, so that an invalid one does not stop the others.

    Attributes:
        prompt: text, or token ids.
        stop: strings that end the text.
        settings: what was given by keyword, and in the mapping `settings`, where a program has them in one; a keyword
            wins.
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
        given: Any = settings or {}
        if keywords and isinstance(given, Mapping):
            given = {**given, **keywords}
        for name, value in (("prompt", prompt), ("stop", stop), ("settings", given)):
            object.__setattr__(self, name, value)


_tapped: ContextVar[Mapping[Model, Running] | None] = ContextVar("tapped", default=None)
"""What runs in place of the models that are traced or patched: in this thread or task, and in no other."""


class Model:
    """A model with its weights, on its device; `rushlight.load` makes it.

    Threads may share it: texts asked for at the same time are generated together, and each comes out as it would alone.

    Attributes:
        module: the tree of layers, `model.module.h[0].attn.c_attn`.
        forward: the module as its device runs it best: on `cpu` the same bits.
        config: the sizes, under config.json's keys.
        tokenizer: text to token ids and back; None if the checkpoint has none.
        name: what was loaded: the hub id, or the name of the folder or file without the path to it.
        n_parameters: a tied head counted once.
        eos_ids: the tokens that end a text.
        suppressed_ids: the tokens that its author forbids, which are never chosen.
        folder: where its files lie on this machine; None if it was made from none.
        files: the paths of its weights.
    """

    def __init__(
        self,
        *,
        module: Module,
        config: Config,
        backend: Backend,
        tokenizer: Tokenizer | None,
        name: str,
        n_parameters: int,
        eos_ids: tuple[int, ...],
        suppressed_ids: tuple[int, ...] = (),
        begin_suppressed_ids: tuple[int, ...] = (),
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
        self.folder = folder
        self.files = files
        self._backend = backend
        self._kv_bytes = kv_bytes
        self._no_tokenizer = no_tokenizer
        self._grammars: Grammars | None = None
        self._plain = self._running(module, self.forward)
        missing = [] if tokenizer is None else tokenizer.unused_ids(config.vocab_size)
        self._allowed = self._all_but((*missing, *suppressed_ids))
        self._allowed_first = None
        if begin_suppressed_ids:
            self._allowed_first = self._all_but((*missing, *suppressed_ids, *begin_suppressed_ids))

    @property
    def device(self) -> str:
        """The word for what computes: `reference` where NumPy does, also for f64 on the CPU."""
        return self._backend.device

    @property
    def dtype(self) -> str:
        """The dtype of its weights, for display: bf16, or bf16/f32 where a checkpoint mixes them."""
        return self._backend.dtype_label

    @property
    def arithmetic(self) -> str:
        """What the bits of its results depend on beside weights and input: "exact" for nothing else, or a word for the
        arithmetic that computes, such as an instruction set or a device.
        """
        return self._backend.arithmetic

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and text can have together."""
        return self.config.context_length

    @property
    def language_model(self) -> LanguageModel:
        """The model as `rushlight.generation` runs it; traced or patched where this thread or task is."""
        return LanguageModel.of(self._here.forward, self._backend, self.config)

    def use_draft(self, draft: Model | None) -> None:
        """From now on, a smaller model guesses what this one is going to say; None ends that. No text changes.

        Its keys and values count within `kv_bytes`. Texts under way go on as they began.

        Raises:
            TokenizerError: its tokens are not the same.
        """
        if draft is not None:
            same = draft.config.vocab_size == self.config.vocab_size and draft.eos_ids == self.eos_ids
            if same and self.tokenizer is not None and draft.tokenizer is not None:
                same = draft.tokenizer.vocabulary() == self.tokenizer.vocabulary()
            if not same:
                raise TokenizerError(
                    f"{draft.name} cannot guess for {self.name}: it has other tokens",
                    remedy="take a smaller model of the same family",
                )
        self._plain = self._running(self.module, self.forward, draft=draft)

    @takes_settings
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> Generation:
        """The text that goes on from a prompt: greedy and at most 100 tokens, unless the settings say otherwise.

        Args:
            prompt: text, or token ids. Text is read after what the tokenizer puts before every text, ids as they are.
                An empty one starts from the end-of-text token. Text that looks like a special token is plain text; as
                an id, a special token is itself.
            stop: strings that end the text; they are no part of it.
            settings: the fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop_ids, ignore_eos, n,
                logprobs, prompt_logprobs, speculate, json_schema, regex. One that is None is not given; so with stop.

        Raises:
            RequestError: a setting or an id is out of its range, or the prompt is too long for the context
                (ContextLengthError).
            MemoryLimitError: keys and values of so many tokens do not fit in memory.
            TokenizerError: there is text and the model has no tokenizer.
            GenerationError: the logits hold NaN or infinity.
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
        """As `generate`, piece by piece. What is wrong with the request is raised here, before the first piece."""
        engine = self._here.engine
        return Stream(engine, self._writer(engine, prompt, stop, settings))

    @takes_settings
    def astream(
        self,
        prompt: str | Sequence[int],
        *,
        stop: str | Sequence[str] | None = (),
        **settings: Unpack[SamplingSettings],
    ) -> AsyncStream:
        """As `stream`, for `async for`: the event loop goes on while another thread computes.

        Raises:
            QueueFullError: at the first piece, if too many texts are waiting already.
        """
        engine = self._here.engine
        return AsyncStream(engine, self._writer(engine, prompt, stop, settings))

    def generate_many(
        self, requests: Iterable[Request | str | Sequence[int]], *, max_active: int = 16
    ) -> Iterator[tuple[int, Generation | RushlightError]]:
        """Texts for many prompts, several at a time: faster than one after another, and the same texts.

        Args:
            requests: prompts, each as `generate` takes it, or a Request where it has settings of its own. Pulled as
                they are needed, never more than `max_active` ahead of what has been yielded.
            max_active: how many are generated together.

        Yields:
            (the request's number, counted from 0; its text), as each is finished. Of a request that is wrong, its
            error: the others go on.

        Raises:
            RequestError: max_active is not a whole number above 0, or `requests` is a single text or not iterable.
        """
        if isinstance(requests, str | bytes) or not isinstance(requests, Iterable):
            raise RequestError(
                "generate_many takes several prompts",
                found=short_repr(requests),
                remedy="put them in a list, or use `generate` for one",
            )
        if not isinstance(max_active, int) or max_active < 1:
            raise RequestError(f"max_active is {max_active!r}: it should be a whole number, 1 or more")
        engine = self._here.engine

        def writers(given: Request | str | Sequence[int]) -> list[Writer]:
            request = given if isinstance(given, Request) else Request(given)
            return self._writers(engine, request.prompt, request.stop, request.settings)

        texts = ((index, partial(writers, request)) for index, request in enumerate(requests))
        return write_many(engine, texts, max_active)

    def _writer(
        self, engine: Engine, prompt: str | Sequence[int], stop: str | Sequence[str] | None, settings: SamplingSettings
    ) -> Writer:
        writers = self._writers(engine, prompt, stop, settings)
        if len(writers) > 1:
            raise RequestError("a stream is of one text", found=f"n {len(writers)}", remedy="use `generate`")
        return writers[0]

    def _writers(
        self, engine: Engine, prompt: str | Sequence[int], stop: str | Sequence[str] | None, settings: SamplingSettings
    ) -> list[Writer]:
        """What a request comes to, checked: a writer for each of its texts."""
        self._check_causal()
        params = SamplingParams.of(settings)
        if StopStrings(stop):
            self._prompts.need_tokenizer("stop strings need a tokenizer")
        prompt_ids = self._prompts.continued(prompt, params.max_tokens)
        stop_ids = {*params.stop_ids, *(() if params.ignore_eos else self.eos_ids)}
        constraint = self._constraint(params)
        if constraint is not None:
            stop_ids.update(self.eos_ids)  # it is what a complete text ends with
        writers = []
        for own in params.of_each_text():
            sampler = Sampler(
                own,
                self.config.vocab_size,
                prompt_ids,
                self._allowed,
                constraint and constraint.copy(),
                allowed_first=self._allowed_first,
            )
            sequence = SequenceState(
                prompt_ids,
                sampler,
                max_tokens=own.max_tokens,
                context_length=self.context_length,
                stop_ids=stop_ids,
            )
            engine.check(sequence)
            result = Generation(
                prompt_ids,
                sampler.seed if own.temperature > 0 else None,
                Stats(len(prompt_ids)),
                logprobs=None if own.logprobs is None else [],
            )
            writers.append(Writer(sequence, result, self.tokenizer, StopStrings(stop)))
        return writers

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.json_schema is None and params.regex is None:
            return None
        tokenizer = self._prompts.need_tokenizer("json_schema and regex need a tokenizer")
        if self._grammars is None:
            self._grammars = Grammars(tokenizer, self.config.vocab_size, self.eos_ids)
        if params.regex is not None:
            return self._grammars.regex(params.regex)
        return self._grammars.json_schema(params.json_schema or {})

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
        """The likeliest texts that go on from a prompt, as far as `n_beams` beams find them: transformers' search.

        Args:
            prompt: as in `generate`.
            n_beams: beginnings kept at every step; one beam is `generate`.
            max_tokens: at most so many new tokens.
            length_penalty: texts are compared by logprob / length ** length_penalty; above 0 favours long ones.
            early_stopping: True ends with n_beams finished texts; False when the best beginning, ended as it is, would
                not be among them; "never" when it cannot come among them at any length.
            n: how many texts to return, at most n_beams; best first.
            stop: strings that end a text; they are no part of it.
            stop_ids: tokens that end a text, beside the model's end-of-text token.
            ignore_eos: go on through the end-of-text token.
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias: as in `SamplingParams`, but as
                transformers has it, biases come first, and log-probabilities are changed in place of logits.

        Raises:
            RequestError, TokenizerError, GenerationError: as `generate`.
        """
        self._check_causal()
        if self._here is not self._plain:
            raise RequestError("a beam search cannot be traced or patched: its rows are of many texts")
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
        n_beams, n = 4 if n_beams is None else n_beams, 1 if n is None else n
        max_tokens = params.max_tokens
        prompt_ids = self._prompts.continued(prompt, max_tokens)
        strings = StopStrings(stop).strings
        ends = {*params.stop_ids, *(() if params.ignore_eos else self.eos_ids)}
        search = BeamSearch(
            n_beams=n_beams,
            max_tokens=min(max_tokens, self.context_length - len(prompt_ids)),
            length_penalty=1.0 if length_penalty is None else length_penalty,
            early_stopping=False if early_stopping is None else early_stopping,
            stop_ids=ends,
            stops=self._stops(strings, prompt_ids) if strings else None,
            params=params,
            allowed=self._allowed,
            allowed_first=self._allowed_first,
        )
        if not isinstance(n, int) or n not in range(1, n_beams + 1):
            raise RequestError(f"n is {n!r}: it should be 1 to n_beams, {n_beams}")
        beams = []
        for text in search.run(self.language_model, prompt_ids)[:n]:
            ended = text.ids[-1] in ends
            ids = list(text.ids[:-1] if ended else text.ids)
            shown = StopStrings(strings)
            words, stopped = shown.push(self.tokenizer.decode(ids, before=prompt_ids) if self.tokenizer else "")
            reason: FinishReason = "stop" if ended or stopped else "length" if len(ids) == max_tokens else "context"
            beams.append(Beam(prompt_ids, ids, words + shown.flush(), reason, text.logprob, text.score))
        return beams

    def _all_but(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """(V,): the tokens that may be chosen where these may not; None for all."""
        if not ids:
            return None
        allowed = np.ones(self.config.vocab_size, np.bool_)
        allowed[list(ids)] = False
        return allowed

    def _stops(self, strings: Sequence[str], prompt_ids: Sequence[int]) -> Callable[[Sequence[int]], bool]:
        """Whether new tokens hold a stop string."""
        decode = self._prompts.need_tokenizer("stop strings need a tokenizer").decode

        def stops(ids: Sequence[int]) -> bool:
            text = decode(ids, before=prompt_ids)
            return any(string in text for string in strings)

        return stops

    def need_tokenizer(self, why: str) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: there is none, and `why` it is needed.
        """
        return self._prompts.need_tokenizer(why)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids that the model is given for a prompt: of a text with what the tokenizer puts before it.

        Raises:
            RequestError, TokenizerError: as `generate`.
        """
        return self._prompts.ids(prompt)

    def logits(self, prompt: str | Sequence[int]) -> NDArray[np.floating]:
        """The model's logits after every token of a text or of token ids: (T, V), float32.

        Raises:
            RequestError: no tokens, an id out of range, or more tokens than the context (ContextLengthError).
        """
        ids = self._prompts.ids(prompt)
        if not ids:
            raise RequestError("there are no tokens to compute logits for")
        if len(ids) > self.context_length:
            raise ContextLengthError(f"there are {len(ids)} tokens, and the model's context is {self.context_length}")
        chunk_rows = len(ids) if self._here is not self._plain or not self.module.causal else PREFILL_ROWS
        context = Context(self.language_model, len(ids))
        return context.feed(ids, all_logits=True, chunk_rows=chunk_rows)

    @contextmanager
    def trace(self, *modules: str) -> Iterator[Trace]:
        """Keeps what the modules put out while this model computes inside the `with`, in this thread.

            with model.trace() as t:
                model.logits("Once upon a time")
            t["h.3.mlp.c_fc"]  # (T, F) float32

        Outputs are the same bits as without a trace. A prompt goes through in one piece: row i is position i.

        Args:
            modules: patterns of the paths to keep, such as `h.*.attn`; all where none is given.

        Raises:
            RequestError: a pattern that no module matches.
        """
        paths = [path for path, _ in self.module.named_modules()]
        check_patterns(modules, paths)
        trace = Trace(self._backend, modules)
        with self._tap(trace.hook):
            yield trace

    @contextmanager
    def patch(self, patches: Mapping[str, Patch]) -> Iterator[None]:
        """Replaces what modules put out while this model computes inside the `with`, in this thread.

            with model.patch({"h.3.attn": lambda x: 0 * x}):
                model.generate("Once upon a time")

        Each function gets a float32 array of its own, (rows, C), and returns one of the same shape. A prompt goes
        through in one piece, so that row i is position i; after it come the new tokens, a row each.

        Args:
            patches: a function by the path of a module, or by a pattern of paths as in `trace`: `h.*.attn`. Where
                several are for one module, each gets what the one before it returned.

        Raises:
            RequestError: there is no such module, or a patch is not a function; while the model computes, a function
                returned another shape.
        """
        check_patches(patches, [path for path, _ in self.module.named_modules()])
        with self._tap(patch_hook(self._backend, patches)):
            yield

    def score(self, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> Score:
        """How likely `continuation` is after `prompt`: lm-evaluation-harness's loglikelihood.

        Two texts are encoded as that harness does: white space at the end of the prompt is moved to the continuation,
        and the continuation's tokens are those that the whole has beyond the prompt's own. Where a token spans the
        join, they are the continuation's own. Token ids are taken as they are; a text beside token ids is encoded
        alone. An empty prompt is the end-of-text token.

        Raises:
            RequestError: the continuation has no tokens, an id is out of range, a token spans the join and the two
                apart are another text, or prompt and continuation together are longer than the context and one token
                (ContextLengthError): nothing is cut off.
            TokenizerError: there is text and the model has no tokenizer.
            GenerationError: the logits hold NaN or infinity.
        """
        return next(self.score_many([(prompt, continuation)]))

    def score_many(self, pairs: Iterable[tuple[str | Sequence[int], str | Sequence[int]]]) -> Iterator[Score]:
        """`score` of each (prompt, continuation), in order: the same figures, and faster than one after another.

        Pairs are read some dozens ahead and scored several in a step. What pairs in a row begin with, as the answers to
        one question do, is computed once.

        Raises:
            RequestError, TokenizerError, GenerationError: as `score`, after the figures of the pairs before that one.
        """
        read: deque[tuple[list[int], list[int]]] = deque()
        if not isinstance(pairs, Iterable):
            raise RequestError("score_many takes pairs of (prompt, continuation)", found=short_repr(pairs))

        def sequences() -> Iterator[tuple[list[int], int]]:
            for prompt, continuation in map(_checked_pair, pairs):
                prompt_ids, ids = self._prompts.pair(prompt, continuation)
                read.append((prompt_ids, ids))
                yield [*prompt_ids, *ids], len(ids)

        for logprobs, greedy in self._scorer(self.context_length).score_many(sequences()):
            yield Score(*read.popleft(), logprobs.tolist(), bool(greedy.all()))

    def perplexity(
        self,
        text: Iterable[str] | Iterable[int],
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[Perplexity], object] | None = None,
    ) -> Perplexity:
        """The perplexity of a text of any length, by windows that slide over it.

        Args:
            text: the text, its pieces as a file gives them, or its token ids; read as they are needed. Pieces are
                encoded as the whole text is, wherever they are cut (see `rushlight.text.encode_chunks`).
            window: tokens in a window; None is the model's context.
            stride: tokens from one window to the next; None is 512, or the window where that is less. A smaller one
                gives each token more context and takes longer.
            progress: called with what there is so far after each window.

        Raises:
            RequestError: window, stride or an id is out of its range, or there are fewer than two tokens.
            TokenizerError: there is text and the model has no tokenizer.
            GenerationError: the logits hold NaN or infinity.
        """
        window = self.context_length if window is None else window
        if not isinstance(window, int) or not 2 <= window <= self.context_length:
            raise RequestError(f"the window is {window!r} tokens", expected=f"2 to {self.context_length}, the context")
        stride = min(512, window) if stride is None else stride
        if not isinstance(stride, int) or not 1 <= stride <= window:
            raise RequestError(f"the stride is {stride!r} tokens", expected=f"1 to {window}, the window")
        result = Perplexity(window, stride)
        read: deque[int] = deque()

        def sequences() -> Iterator[tuple[list[int], int]]:
            for ids, n_new in sliding_windows(self._prompts.pieces(text, result), window, stride):
                read.append(n_new)
                yield ids, min(n_new, len(ids) - 1)

        start = perf_counter()
        for logprobs, _ in self._scorer(window).score_many(sequences()):
            result.add(read.popleft(), logprobs)
            result.elapsed_s = perf_counter() - start
            if progress is not None:
                progress(result)
        if not result.n_scored:
            raise RequestError("there is nothing to predict", expected="2 tokens or more", found=result.n_ids)
        return result

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model cannot be pickled or copied: its weights are on the device {self.device}; "
            f"in another process, load it again with rushlight.load(...)"
        )

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.n_parameters:,} parameters, {self.device}, {self.dtype}>"

    @property
    def _prompts(self) -> Prompts:
        start = self.eos_ids[0] if self.eos_ids else self.config.bos_token_id
        return Prompts(
            self.name, self.tokenizer, self.config.vocab_size, self.context_length, start, self._no_tokenizer
        )

    @property
    def _here(self) -> Running:
        """What runs this model in this thread or task."""
        return (_tapped.get() or {}).get(self, self._plain)

    def _running(
        self,
        module: Module,
        forward: Forward,
        *,
        max_rows: int = PREFILL_ROWS,
        prefix_cache: bool = True,
        speculation: bool = True,
        draft: Model | None = None,
    ) -> Running:
        """The one place where engines are made."""

        def make_engine() -> Engine:
            return Engine(
                LanguageModel.of(forward, self._backend, self.config),
                max_rows=max_rows,
                kv_bytes=self._kv_bytes,
                prefix_cache=prefix_cache,
                speculation=speculation,
                draft=None if draft is None else LanguageModel.of(draft.forward, draft._backend, draft.config),
            )

        return Running(module, forward, make_engine)

    @contextmanager
    def _tap(self, hook: Hook) -> Iterator[None]:
        """Has the modules run with a hook, on top of those that are on already."""
        module = tapped(self._here.module, hook)
        # Blocks computed under other hooks are not reused, a prompt is one chunk, and no row is a draft token's.
        running = self._running(module, module, max_rows=self.context_length, prefix_cache=False, speculation=False)
        token = _tapped.set({**(_tapped.get() or {}), self: running})
        try:
            yield
        finally:
            _tapped.reset(token)

    def _check_causal(self) -> None:
        if not self.module.causal:
            raise RequestError(
                f"{type(self.module).__name__} looks at what stands after a token too: it cannot go on with a text",
                remedy="`logits` gives what it computes for each token",
            )

    def _scorer(self, capacity: int) -> Scorer:
        self._check_causal()
        return Scorer(self.language_model, capacity, in_one_piece=self._here is not self._plain)


def _checked_pair(pair: object) -> Any:
    """A prompt and its continuation; a text of two characters is not a pair."""
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair
    raise RequestError("a pair is (prompt, continuation)", found=short_repr(pair))
