"""Drives the engine for requests, and hands out their completions: as they come, or when they are finished."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from rushlight.errors import RushlightError
from rushlight.generation.consumer import Reader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator

    from rushlight.generation import Engine, Sequence, Token
    from rushlight.runtime.result import Generation
    from rushlight.text import StopStrings, Tokenizer


TOKENS_TOGETHER = 16
"""Tokens of a text that are read together where it is given out whole."""


class Writer:
    """Writes a sequence's tokens into its result as they are read.

    Args:
        sequence: what is generated.
        result: what is written.
        tokenizer: None leaves the text empty.
        stop: the strings that end it.
    """

    def __init__(self, sequence: Sequence, result: Generation, tokenizer: Tokenizer | None, stop: StopStrings) -> None:
        self.sequence = sequence
        self.result = result
        self.ended = False
        self._stop = stop
        self._decoder = tokenizer.stream(before=result.prompt_ids) if tokenizer else None
        self._together = 1 if stop else TOKENS_TOGETHER

    def is_due(self) -> bool:
        """Whether to take what there is, where the text is given out whole.

        Several tokens are faster taken together; but any may complete a stop string.
        """
        return self.sequence.done or len(self.sequence.unread) >= self._together

    def take(self) -> str | None:
        """The text that the next token makes certain, often none; None if there is no token yet, or no more.

        A character is never broken, and a stop string never shown, not even its beginning.

        Raises:
            RushlightError: what ended the sequence.
        """
        if self.ended:
            return None
        done = self.sequence.done  # read first: its last token comes before it is done
        token = self.sequence.read()
        if token is None and not done:
            return None
        self._account()
        piece = ""
        if token is not None:
            self.result.stats.generated_tokens += 1
            if token.finish_reason != "stop":
                piece = self._write(token)
        if not self.ended and (token is None or token.finish_reason):
            piece += self._finish(token)
        self.result.text += piece
        return piece

    def _write(self, token: Token) -> str:
        self.result.ids.append(token.id)
        if self.result.logprobs is not None and token.logprob is not None:
            self.result.logprobs.append(token.logprob)
        return self._pass(self._decoder.push(token.id)) if self._decoder else ""

    def _finish(self, token: Token | None) -> str:
        """Ends the text with its last token, or without one; returns what was held back of it."""
        self.ended = True
        if token is not None:
            self.result.finish_reason = token.finish_reason
        elif self.sequence.end == self.sequence.n_prompt:
            self.result.finish_reason = "length"
        if self._decoder is None:
            return ""
        piece = self._pass(self._decoder.flush())
        return piece + self._stop.flush()

    def _pass(self, text: str) -> str:
        """What the stop strings let through of the text; one that comes ends it."""
        shown, stopped = self._stop.push(text)
        if stopped:
            self.ended = True
            self.result.finish_reason = "stop"
        return shown

    def _account(self) -> None:
        stats, sequence = self.result.stats, self.sequence
        stats.prefill_s, stats.decode_s, stats.cached_tokens = sequence.prefill_s, sequence.decode_s, sequence.n_found
        if sequence.scores_prompt:
            self.result.prompt_logprobs = [None, *sequence.prompt_logprobs]


class Stream:
    """A text as it is generated: iterate for its pieces, none of them empty; `result` then holds the whole.

    A character is never broken between pieces, and a stop string never shown, not even its beginning. Nothing runs
    before the first piece is asked for. A stream that is closed, or forgotten, is generated no further, and its memory
    is free for the next text.
    """

    def __init__(self, engine: Engine, writer: Writer) -> None:
        self.result = writer.result
        self._engine = engine
        self._sequence = writer.sequence
        self._pieces = _pieces(engine, writer)

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """(prompt tokens computed or found in the prefix cache so far, all of them); any thread may ask."""
        n_prompt = self._sequence.n_prompt
        has_begun = self.result.stats.generated_tokens > 0  # what was computed is let go of at the end
        return n_prompt if has_begun else min(self._sequence.n_fed, n_prompt), n_prompt

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation early."""
        self._pieces.close()
        self._engine.settle()


class AsyncStream:
    """The same for `async for`: another thread computes, and the event loop goes on meanwhile.

    A reader that is slower than the model costs no memory: the model waits for it after some tokens.
    """

    def __init__(self, engine: Engine, writer: Writer) -> None:
        self.result = writer.result
        self._pieces = _async_pieces(engine, writer)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Ends the generation early."""
        await self._pieces.aclose()


def write_many(
    engine: Engine, texts: Iterator[tuple[int, Callable[[], list[Writer]]]], max_active: int
) -> Iterator[tuple[int, Generation | RushlightError]]:
    """Has the engine write many texts, `max_active` at a time.

    Args:
        texts: (a number, what makes the writers of one prompt's texts), pulled as they are needed.

    Yields:
        (the number, the text or what went wrong with it), as each is finished.
    """
    reader = Reader()  # it goes with this frame, and nothing that runs then can swallow an interrupt
    active: dict[int, list[Writer]] = {}
    while True:
        while len(active) < max_active and (pulled := next(texts, None)):
            index, make = pulled
            try:
                active[index] = make()
            except RushlightError as error:
                yield index, error
        for index in [index for index, writers in active.items() if not writers[-1].sequence.arrival]:
            alone = not any(map(_under_way, chain.from_iterable(active.values())))
            try:
                _submit(engine, active[index], reader, alone=alone)
            except RushlightError as error:
                _cancel(engine, active.pop(index))
                yield index, error
        if not active:
            return
        engine.run_until(partial(_any_due, list(chain.from_iterable(active.values()))))
        for index, writers in list(active.items()):
            try:
                ended = [_catch_up(engine, writer) for writer in writers]
            except RushlightError as error:
                _cancel(engine, active.pop(index))
                yield index, error
                continue
            if all(ended):
                del active[index]
                result, *result.others = (writer.result for writer in writers)
                yield index, result


def _under_way(writer: Writer) -> bool:
    return bool(writer.sequence.arrival) and not writer.ended


def _submit(engine: Engine, writers: Iterable[Writer], reader: Reader, *, alone: bool) -> None:
    """Queues the texts that are not queued yet, in order, as far as there is room.

    Args:
        alone: no text that is read here is under way, so that there is nothing better to do than to wait for room.

    Raises:
        QueueFullError: there is none, and there will be none.
    """
    for writer in writers:
        if writer.sequence.arrival:
            continue
        if engine.full and not alone:
            return  # there will be, once those under way have been read
        engine.submit(writer.sequence, reader, wait=True)
        alone = False


def _any_due(writers: Iterable[Writer]) -> bool:
    return any(writer.is_due() for writer in writers if not writer.ended)


def _catch_up(engine: Engine, writer: Writer) -> bool:
    """Writes what there is to read; whether the text has ended, and its memory is given back."""
    while writer.sequence.is_ready() and not writer.ended:
        writer.take()
    if writer.ended:
        engine.cancel(writer.sequence)
    return writer.ended


def _cancel(engine: Engine, writers: Iterable[Writer]) -> None:
    for writer in writers:
        engine.cancel(writer.sequence)


def _pieces(engine: Engine, writer: Writer) -> Generator[str]:
    # A function, not a method: a stream that its own generator held would be freed late.
    sequence, reader = writer.sequence, Reader()
    engine.submit(sequence, reader, wait=True)
    while not writer.ended:
        engine.run_until(sequence.is_ready)
        if piece := writer.take():
            yield piece
    engine.cancel(sequence)


async def _async_pieces(engine: Engine, writer: Writer) -> AsyncGenerator[str]:
    import asyncio  # half a hundred modules, which the way to a first token does without

    # The reader goes with this frame, also where a loop that was closed cannot bring it to its end.
    sequence, ready, reader = writer.sequence, asyncio.Event(), Reader()
    loop = asyncio.get_running_loop()

    def notify() -> None:
        try:
            loop.call_soon_threadsafe(ready.set)
        except RuntimeError:  # the event loop was closed over its head
            engine.cancel(sequence)

    sequence.notify = notify
    try:
        engine.submit(sequence, reader)
        engine.follow()
        while not writer.ended:
            stalled = not sequence.runnable
            piece = writer.take()
            if stalled and sequence.runnable:
                engine.follow()
            if piece:
                yield piece
            elif piece is None:
                await ready.wait()
                ready.clear()
    finally:
        engine.cancel(sequence)
