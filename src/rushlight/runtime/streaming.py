"""Submits completions to the engine, decodes their tokens as they come, and streams them as deltas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rushlight.errors import RequestError, RushlightError
from rushlight.generation.consumer import Consumer
from rushlight.runtime.result import Token, token_text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence

    from rushlight.generation import Engine, FinishReason, SampledToken, SequenceState
    from rushlight.runtime.result import Generation
    from rushlight.text import StopStrings, Tokenizer

Key = TypeVar("Key")

TOKENS_PER_READ = 16
"""Tokens of a sequence that are read at a time if its text is not streamed."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of a streamed completion.

    Its text is final: it never contains part of a character or of a stop string. Joined, the deltas of an index have
    exactly the text and the tokens of its `Generation`.

    Attributes:
        index: the index of its completion among the n of the request.
        text: the new text; empty if the model has no tokenizer, and possibly in the last delta of an index.
        tokens: the new tokens, without the stop token. Several tokens that form one character, or may begin a stop
            string, come in one delta.
        finish_reason: why the completion ended, in the last delta of an index; None in all others.
    """

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None = None

    def __str__(self) -> str:
        return self.text


class Completion:
    """A sequence, and the `Generation` that its tokens are decoded into as they are read.

    Args:
        index: its index among the completions of the request.
        sequence: a sequence that is not submitted yet.
        result: an empty result.
        tokenizer: None leaves the text empty.
        stop: the stop strings.
    """

    def __init__(
        self, index: int, sequence: SequenceState, result: Generation, tokenizer: Tokenizer | None, stop: StopStrings
    ) -> None:
        self.index = index
        self.sequence = sequence
        self.result = result
        self.tokenizer = tokenizer
        self.finished = False
        self._stop = stop
        self._decoder = tokenizer.stream(before=result.prompt_ids) if tokenizer else None
        self._tokens_per_read = 1 if stop else TOKENS_PER_READ
        self._n_chars = self._n_ids = 0  # already delivered

    @property
    def running(self) -> bool:
        """Whether it has been submitted and has not finished."""
        return bool(self.sequence.arrival) and not self.finished

    def is_due(self) -> bool:
        """Whether to read its tokens now, if its text is not streamed.

        Reading several at a time is faster, but any token may complete a stop string.
        """
        return self.sequence.done or len(self.sequence.unread) >= self._tokens_per_read

    def advance(self) -> bool:
        """Reads the next token into the result, or the end of the sequence; False if there is neither.

        Raises:
            RushlightError: the error that ended the sequence.
        """
        if self.finished:
            return False
        done = self.sequence.done  # read before the token: the last token comes before `done` is set
        token = self.sequence.read()
        if token is None and not done:
            return False
        self._update_stats()
        text = ""
        if token is not None:
            self.result.stats.generated_tokens += 1
            if token.finish_reason != "stop":
                text = self._append(token)
        if not self.finished and (token is None or token.finish_reason):
            text += self._finish(token)
        self.result.text += text
        return True

    def next_piece(self) -> Piece | None:
        """The addition to the result since the last piece; None if there is nothing to deliver yet."""
        start, first = self._n_chars, self._n_ids
        n_chars, n_ids = len(self.result.text), len(self.result.ids)
        if n_chars == start and not self.finished and (self._decoder is not None or n_ids == first):
            return None
        self._n_chars, self._n_ids = n_chars, n_ids
        return Piece(self, self.result.text[start:], first, n_ids, self.finished)

    def _append(self, token: SampledToken) -> str:
        self.result.ids.append(token.id)
        if self.result.logprobs is not None and token.logprob is not None:
            self.result.logprobs.append(token.logprob)
        return self._filter(self._decoder.push(token.id)) if self._decoder else ""

    def _finish(self, token: SampledToken | None) -> str:
        """Finishes with the last token, or without one; returns the text held back so far."""
        self.finished = True
        if token is not None:
            self.result.finish_reason = token.finish_reason
        elif self.sequence.end == self.sequence.n_prompt:
            self.result.finish_reason = "length"
        if self._decoder is None:
            return ""
        text = self._filter(self._decoder.flush())
        return text + self._stop.flush()

    def _filter(self, text: str) -> str:
        """The part of the text that cannot belong to a stop string; a complete one finishes the completion."""
        shown, stopped = self._stop.push(text)
        if stopped:
            self.finished = True
            self.result.finish_reason = "stop"
        return shown

    def _update_stats(self) -> None:
        stats, sequence = self.result.stats, self.sequence
        stats.prefill_s, stats.decode_s, stats.cached_tokens = sequence.prefill_s, sequence.decode_s, sequence.n_cached
        if sequence.scores_prompt:
            self.result.prompt_logprobs = [None, *sequence.prompt_logprobs]


class Piece(NamedTuple):
    """New text of a completion, and the range of its new tokens: a delta whose tokens are not decoded yet."""

    completion: Completion
    text: str
    first: int
    end: int
    is_last: bool

    def delta(self) -> Delta:
        """The piece with its tokens decoded one by one."""
        result, tokenizer = self.completion.result, self.completion.tokenizer
        tokens = []
        for i in range(self.first, self.end):
            text = token_text(tokenizer, result.ids[i], result.ids_before(len(result.prompt_ids) + i))
            tokens.append(Token(result.ids[i], text, result.logprobs[i] if result.logprobs else None))
        reason = result.finish_reason if self.is_last else None
        return Delta(self.completion.index, self.text, tuple(tokens), reason)


class _BaseStream:
    """The results of a stream, as far as it has been read."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = completions

    @property
    def results(self) -> list[Generation]:
        """The completions by index, as far as the stream has been read."""
        return [completion.result for completion in self._completions]

    @property
    def result(self) -> Generation:
        """The first completion; the only one unless `n` is above 1."""
        return self._completions[0].result

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """(prompt tokens computed or found in the prefix cache, all prompt tokens); callable from any thread."""
        sequence = self._completions[0].sequence
        has_started = self.result.stats.generated_tokens > 0  # a finished sequence no longer counts its tokens
        return sequence.n_prompt if has_started else min(sequence.n_computed, sequence.n_prompt), sequence.n_prompt

    def _require_single(self) -> None:
        if len(self._completions) > 1:
            raise RequestError(
                f"the text of {len(self._completions)} completions is interleaved",
                remedy="iterate over stream.deltas(), which have an index",
            )


class Stream(_BaseStream):
    """The stream of a request. Iterating yields text, `deltas()` yields `Delta` objects, and `results` collects both.

        for text in model.stream("Once upon a time"):
            print(text, end="")
        for delta in model.stream("Once upon a time", n=2, logprobs=3).deltas():
            print(delta.index, delta.text, delta.tokens, delta.finish_reason)

    Each piece of text is non-empty and final: it never contains part of a character or of a stop string. Nothing runs
    before the first iteration. Closing or dropping a stream cancels its sequences and frees their memory.
    """

    def __init__(self, engine: Engine, completions: Sequence[Completion]) -> None:
        super().__init__(completions)
        self._engine = engine
        self._pieces = _pieces(engine, completions)

    def __iter__(self) -> Iterator[str]:
        self._require_single()
        return self

    def __next__(self) -> str:
        self._require_single()
        while not (text := next(self._pieces).text):
            pass
        return text

    def deltas(self) -> Iterator[Delta]:
        """The deltas of all n completions, interleaved."""
        return map(Piece.delta, self._pieces)

    def close(self) -> None:
        """Cancels the sequences that have not finished."""
        self._pieces.close()
        self._engine.reclaim()


class AsyncStream(_BaseStream):
    """A `Stream` for `async for`: another thread computes while the event loop continues.

    A slow reader costs no memory: its sequences pause after some unread tokens.
    """

    def __init__(self, engine: Engine, completions: Sequence[Completion]) -> None:
        super().__init__(completions)
        self._pieces = _async_pieces(engine, completions)

    def __aiter__(self) -> AsyncIterator[str]:
        self._require_single()
        return self

    async def __anext__(self) -> str:
        self._require_single()
        while not (text := (await anext(self._pieces)).text):
            pass
        return text

    def deltas(self) -> AsyncIterator[Delta]:
        """The deltas of all n completions, interleaved."""
        return _AsyncDeltas(self._pieces)

    async def aclose(self) -> None:
        """Cancels the sequences that have not finished."""
        await self._pieces.aclose()


class _AsyncDeltas:
    # Not a generator: dropping a generator would release the pieces only when the event loop finalizes it.
    def __init__(self, pieces: AsyncGenerator[Piece]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        return (await anext(self._pieces)).delta()


def run_requests(
    engine: Engine, requests: Iterator[tuple[Key, Callable[[], list[Completion]]]], max_active: int
) -> Iterator[tuple[Key, list[Generation] | RushlightError]]:
    """Runs many requests to completion, `max_active` at a time.

    Args:
        engine: the engine.
        requests: (key, function that creates the completions), consumed as needed.
        max_active: the most requests that run at the same time.

    Yields:
        (key, completions or error), in the order in which the requests finish.
    """
    consumer = Consumer()  # released with this frame, without Python code that could swallow an interrupt
    active: dict[Key, list[Completion]] = {}
    while True:
        while len(active) < max_active and (pulled := next(requests, None)):
            key, make = pulled
            try:
                active[key] = make()
            except RushlightError as error:
                yield key, error
        for key in [key for key, completions in active.items() if not completions[-1].sequence.arrival]:
            can_wait = not any(completion.running for completion in chain.from_iterable(active.values()))
            try:
                _submit(engine, active[key], consumer, can_wait=can_wait)
            except RushlightError as error:
                _cancel(engine, active.pop(key))
                yield key, error
        if not active:
            return
        engine.run_until(partial(_any_due, list(chain.from_iterable(active.values()))))
        for key, completions in list(active.items()):
            try:
                finished = [_catch_up(engine, completion) for completion in completions]
            except RushlightError as error:
                _cancel(engine, active.pop(key))
                yield key, error
                continue
            if all(finished):
                del active[key]
                yield key, [completion.result for completion in completions]


def _submit(engine: Engine, completions: Iterable[Completion], consumer: Consumer, *, can_wait: bool) -> None:
    """Submits completions that are not submitted yet, in order, while the queue has room.

    Args:
        engine: the engine.
        completions: the completions of one request.
        consumer: cancels their sequences when it is collected.
        can_wait: whether to run other sequences until there is room, because the caller has none to read meanwhile.

    Raises:
        QueueFullError: the queue is full and cannot drain.
    """
    for completion in completions:
        if completion.sequence.arrival:
            continue
        if engine.full and not can_wait:
            return
        engine.submit(completion.sequence, consumer, wait=True)
        can_wait = False


def _any_due(completions: Iterable[Completion]) -> bool:
    return any(completion.is_due() for completion in completions if not completion.finished)


def _any_ready(completions: Iterable[Completion]) -> bool:
    return any(completion.sequence.is_ready() for completion in completions)


def _catch_up(engine: Engine, completion: Completion) -> bool:
    """Reads the available tokens; returns whether the completion has finished, and frees its memory if so."""
    while completion.sequence.is_ready() and completion.advance():
        pass
    if completion.finished:
        engine.cancel(completion.sequence)
    return completion.finished


def _cancel(engine: Engine, completions: Iterable[Completion]) -> None:
    for completion in completions:
        engine.cancel(completion.sequence)


def _pieces(engine: Engine, completions: Sequence[Completion]) -> Generator[Piece]:
    # A function, not a method: a generator that referred to its stream would keep it alive in a cycle.
    consumer, active = Consumer(), list(completions)
    try:
        while active:
            if not active[-1].sequence.arrival:
                _submit(engine, active, consumer, can_wait=not any(completion.running for completion in active))
            engine.run_until(partial(_any_ready, active))
            for completion in list(active):
                while completion.sequence.is_ready() and completion.advance():
                    if completion.finished:
                        engine.cancel(completion.sequence)
                        active.remove(completion)
                    if piece := completion.next_piece():
                        yield piece
    except RushlightError:
        _cancel(engine, active)
        raise


async def _async_pieces(engine: Engine, completions: Sequence[Completion]) -> AsyncGenerator[Piece]:
    import asyncio  # imports about fifty modules, which synchronous callers do not need

    # The consumer is released with this frame, even if a closed event loop cannot finalize the generator.
    active, ready, consumer = list(completions), asyncio.Event(), Consumer()
    loop = asyncio.get_running_loop()

    def notify() -> None:
        try:
            loop.call_soon_threadsafe(ready.set)
        except RuntimeError:  # the event loop is closed
            _cancel(engine, completions)

    try:
        for completion in active:
            completion.sequence.notify = notify
            engine.submit(completion.sequence, consumer)
        engine.run_in_background()
        while active:
            has_read = False
            for completion in list(active):
                paused = not completion.sequence.runnable
                advanced = completion.advance()
                has_read = has_read or advanced
                if paused and completion.sequence.runnable:
                    engine.run_in_background()
                if completion.finished:
                    engine.cancel(completion.sequence)
                    active.remove(completion)
                if advanced and (piece := completion.next_piece()):
                    yield piece
            if not has_read:
                await ready.wait()
                ready.clear()
    finally:
        _cancel(engine, completions)
