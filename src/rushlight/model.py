"""The object that a user holds: a loaded model that generates text and computes logits."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from numbers import Integral
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rushlight.errors import ContextLengthError, RequestError, RushlightError, TokenizerError
from rushlight.generation import Context, Engine, Sampler, SamplingParams, SamplingSettings, Sequence
from rushlight.generation.context import PREFILL_ROWS
from rushlight.generation.speculation import Draft, PromptLookup
from rushlight.nn import tapped
from rushlight.nn.trace import Trace, check_paths, patch_hook
from rushlight.result import AsyncStream, Generation, Stats, Stream, Writer
from rushlight.text import StopStrings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Sequence as Ids
    from pathlib import Path
    from typing import Unpack

    from numpy.typing import NDArray

    from rushlight.backends.protocol import Backend
    from rushlight.generation.speculation import Guesser
    from rushlight.models import Config
    from rushlight.nn import Module
    from rushlight.nn.tap import Hook
    from rushlight.nn.trace import Patch
    from rushlight.text import Tokenizer

__all__ = ["AsyncStream", "Generation", "Model", "Request", "Stats", "Stream"]


@dataclass(frozen=True, slots=True)
class Request:
    """One of many prompts, as `Model.generate` takes it."""

    prompt: str | Ids[int]
    stop: str | Ids[str] = ()
    settings: SamplingSettings = field(default_factory=SamplingSettings)


class _Tapped(NamedTuple):
    """What runs in place of a model's own modules while a trace or a patch is on."""

    module: Module
    engine: Engine


_tapped: ContextVar[Mapping[Model, _Tapped] | None] = ContextVar("tapped", default=None)
"""The models that are traced or patched: in this thread or task, and in no other."""


class Model:
    """A model with its weights, on its device; `rushlight.load` makes it.

    Threads may share it: texts asked for at the same time are generated together, and each comes out as it would alone.

    Attributes:
        module: the tree of layers, `model.module.h[0].attn.c_attn`.
        forward: the module as its device runs it best; the same bits.
        config: the sizes, under config.json's keys.
        tokenizer: text to token ids and back; None if the checkpoint has none.
        name: what was loaded, in the user's word.
        n_parameters: a tied head counted once.
        eos_ids: the tokens that end a text.
        folder: where its files lie on this machine; None if it was made from none.
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
        folder: Path | None = None,
    ) -> None:
        self.module = module
        self.forward = backend.capture(module)
        self.config = config
        self.tokenizer = tokenizer
        self.name = name
        self.n_parameters = n_parameters
        self.eos_ids = eos_ids
        self.folder = folder
        self._backend = backend
        self._draft: Model | None = None
        self._engine_lock = Lock()
        self._engine_made: tuple[int, Engine] | None = None
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

    def use_draft(self, draft: Model | None) -> None:
        """From now on, a smaller model guesses what this one is going to say; None ends that. No text changes.

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
        self._draft = draft

    def generate(
        self, prompt: str | Ids[int], *, stop: str | Ids[str] = (), **settings: Unpack[SamplingSettings]
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
        [(_, result)] = self.generate_many([Request(prompt, stop, settings)])
        if isinstance(result, RushlightError):
            raise result
        return result

    def stream(
        self, prompt: str | Ids[int], *, stop: str | Ids[str] = (), **settings: Unpack[SamplingSettings]
    ) -> Stream:
        """As `generate`, piece by piece. What is wrong with the request is raised here, before the first piece."""
        return Stream(self._engine, self._writer(prompt, stop, settings))

    def astream(
        self, prompt: str | Ids[int], *, stop: str | Ids[str] = (), **settings: Unpack[SamplingSettings]
    ) -> AsyncStream:
        """As `stream`, for `async for`: the event loop goes on while another thread computes.

        Raises:
            QueueFullError: at the first piece, if too many texts are waiting already.
        """
        return AsyncStream(self._engine, self._writer(prompt, stop, settings))

    def generate_many(
        self, requests: Iterable[Request], *, max_active: int = 16
    ) -> Iterator[tuple[int, Generation | RushlightError]]:
        """Texts for many prompts, several at a time: faster than one after another, and the same texts.

        Args:
            requests: pulled as they are needed, never more than `max_active` ahead of what has been yielded.
            max_active: how many are generated together.

        Yields:
            (the request's number, counted from 0; its text), as each is finished. Of a request that is wrong, its
            error: the others go on.

        Raises:
            RequestError: max_active is no number above 0.
        """
        if max_active < 1:
            raise RequestError("max_active is too small", expected="1 or more", found=max_active)
        return self._generate_many(enumerate(requests), max_active)

    def _generate_many(
        self, requests: Iterator[tuple[int, Request]], max_active: int
    ) -> Iterator[tuple[int, Generation | RushlightError]]:
        active: dict[int, list[Writer]] = {}
        try:
            while True:
                while len(active) < max_active and (pulled := next(requests, None)):
                    index, request = pulled
                    try:
                        active[index] = self._begin(request)
                    except RushlightError as error:
                        yield index, error
                if not active:
                    return
                self._engine.run_until(partial(_any_ready, list(chain.from_iterable(active.values()))))
                for index, writers in list(active.items()):
                    try:
                        for writer in writers:
                            self._catch_up(writer)
                    except RushlightError as error:
                        self._cancel(active.pop(index))
                        yield index, error
                        continue
                    if all(writer.ended for writer in writers):
                        del active[index]
                        result, *others = (writer.result for writer in writers)
                        result.others = others
                        yield index, result
        finally:
            for writers in active.values():
                self._cancel(writers)

    def _begin(self, request: Request) -> list[Writer]:
        writers = self._writers(request.prompt, request.stop, request.settings)
        try:
            for writer in writers:
                self._engine.submit(writer.sequence, wait=True)
        except BaseException:
            self._cancel(writers)
            raise
        return writers

    def _catch_up(self, writer: Writer) -> None:
        """Writes what there is to read; a text that has ended gives its memory back."""
        while writer.take() is not None:
            pass
        if writer.ended:
            self._engine.cancel(writer.sequence)

    def _cancel(self, writers: Iterable[Writer]) -> None:
        for writer in writers:
            self._engine.cancel(writer.sequence)

    def _writer(self, prompt: str | Ids[int], stop: str | Ids[str], settings: SamplingSettings) -> Writer:
        writers = self._writers(prompt, stop, settings)
        if len(writers) > 1:
            raise RequestError("a stream is of one text", found=f"n {len(writers)}", remedy="use `generate`")
        return writers[0]

    def _writers(self, prompt: str | Ids[int], stop: str | Ids[str], settings: SamplingSettings) -> list[Writer]:
        """What a request comes to, checked: a writer for each of its texts."""
        if not self.module.causal:
            raise RequestError(
                f"{type(self.module).__name__} looks at what stands behind a token too: it cannot go on with a text",
                remedy="`logits` gives what it computes for each token",
            )
        params = SamplingParams(**settings)
        if stop and self.tokenizer is None:
            raise self._no_tokenizer("stop strings need a tokenizer")
        prompt_ids = self._ids(prompt) or [self._start_id()]
        most = self.context_length - (1 if params.max_tokens else 0)
        if len(prompt_ids) > most:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, and the model's context is {self.context_length}",
                remedy=f"shorten it by {len(prompt_ids) - most} tokens or more",
            )
        stop_ids = {*params.stop_ids, *(() if params.ignore_eos else self.eos_ids)}
        writers = []
        for own in params.of_each_text():
            sampler = Sampler(own, self.config.vocab_size, prompt_ids, self._barred, self._backend.sample)
            sequence = Sequence(
                prompt_ids,
                sampler,
                max_tokens=own.max_tokens,
                context_length=self.context_length,
                stop_ids=stop_ids,
                guessers=self._guessers(sampler, len(prompt_ids)),
            )
            self._engine.check(sequence)
            result = Generation(
                prompt_ids,
                sampler.seed if own.temperature > 0 else None,
                Stats(len(prompt_ids)),
                logprobs=None if own.logprobs is None else [],
            )
            writers.append(Writer(sequence, result, self.tokenizer, StopStrings(stop)))
        return writers

    def _guessers(self, sampler: Sampler, n_prompt: int) -> list[Guesser]:
        params, draft = sampler.params, self._draft
        if params.speculate is False or self._tapped_here():  # a trace has rows of the text alone
            return []
        guessers: list[Guesser] = [PromptLookup()]
        if draft is not None:
            most = min(n_prompt + params.max_tokens, draft.context_length)
            context = Context(draft.forward, draft._backend, draft.config.kv_shape, most)
            guessers.append(Draft(context, most, sampler))
        return guessers

    @property
    def _engine(self) -> Engine:
        """What all texts of this model go through; made when it is first needed, and anew in a forked process."""
        if tapped_here := self._tapped_here():
            return tapped_here.engine
        with self._engine_lock:
            if self._engine_made is None or self._engine_made[0] != os.getpid():
                engine = Engine(self.forward, self._backend, self.config.kv_shape, context_length=self.context_length)
                self._engine_made = os.getpid(), engine
            return self._engine_made[1]

    def logits(self, prompt: str | Ids[int]) -> NDArray[np.floating]:
        """The model's logits after every token of a text or of token ids: (T, V), float32.

        Raises:
            RequestError: no tokens, an id out of range, or more tokens than the context (ContextLengthError).
        """
        ids = self._ids(prompt)
        if not ids:
            raise RequestError("there are no tokens to compute logits for")
        if len(ids) > self.context_length:
            raise ContextLengthError(f"there are {len(ids)} tokens, and the model's context is {self.context_length}")
        tapped_here = self._tapped_here()
        forward = tapped_here.module if tapped_here else self.forward
        chunk_rows = len(ids) if tapped_here or not self.module.causal else PREFILL_ROWS
        context = Context(forward, self._backend, self.config.kv_shape, len(ids))
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
        strangers = [pattern for pattern in modules if not any(fnmatchcase(path, pattern) for path in paths)]
        if strangers:
            raise RequestError("; ".join(check_paths(strangers, paths)))
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

        Raises:
            RequestError: there is no such module.
        """
        problems = check_paths(patches, [path for path, _ in self.module.named_modules()])
        if problems:
            raise RequestError("; ".join(problems))
        with self._tap(patch_hook(self._backend, patches)):
            yield

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.n_parameters:,} parameters, {self.device}, {self.dtype}>"

    @contextmanager
    def _tap(self, hook: Hook) -> Iterator[None]:
        """Has the modules run with a hook, on top of those that are on already."""
        here = self._tapped_here()
        module = tapped(here.module if here else self.module, hook)
        # Nothing is found again that was computed under other hooks, and a prompt is one piece.
        engine = Engine(
            module,
            self._backend,
            self.config.kv_shape,
            context_length=self.context_length,
            max_rows=self.context_length,
            prefix_cache=False,
        )
        token = _tapped.set({**(_tapped.get() or {}), self: _Tapped(module, engine)})
        try:
            yield
        finally:
            _tapped.reset(token)

    def _tapped_here(self) -> _Tapped | None:
        return (_tapped.get() or {}).get(self)

    def _ids(self, prompt: str | Ids[int]) -> list[int]:
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


def _any_ready(writers: Iterable[Writer]) -> bool:
    return any(writer.sequence.is_ready() for writer in writers if not writer.ended)
