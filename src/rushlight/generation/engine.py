"""The engine: many sequences through one model, a step at a time, whoever asks for them and from whichever thread."""

from __future__ import annotations

import threading
from collections import deque
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.errors import GenerationError, MemoryLimitError, QueueFullError
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.consumer import watch
from rushlight.generation.runner import PREFILL_ROWS, ModelRunner
from rushlight.generation.sampling.sample_step import SampleTask, host_rows, sample
from rushlight.generation.scheduler import Scheduler
from rushlight.generation.speculation.controller import SpeculationController
from rushlight.generation.speculation.draft_model import Draft, Drafts
from rushlight.host.memory import naming_shortages, shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.generation.consumer import Consumer, ConsumerRef
    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sequence import SequenceState

MAX_SEQUENCES = 64
"""In one step; the others wait."""

MAX_WAITING = 1024
"""Sequences that wait for their beginning; then the queue is full."""

KV_SHARE = 0.5
"""Of the memory there is, what keys and values may take."""

CACHED_CONTEXTS = 4
"""Of past prompts, how many full contexts are kept to be shared before their memory is used again."""

LINGER_S = 0.1
"""How long the thread of asynchronous readers waits for more to do before it ends."""


class Engine:
    """Runs sequences together, so that the weights are read once for all of them; no text depends on another.

    There is no thread that runs the steps: a reader that waits for its token runs them, for everybody, and while one
    does the others wait for what it brings. Only asynchronous readers, who must not block, have a thread run them; it
    ends when it has nothing to do. Every method may be called from any thread.

    Args:
        model: the model.
        max_sequences: at most so many in a step.
        max_rows: at most so many tokens of prompts in a step.
        max_waiting: at most so many that have not begun.
        prefix_cache: whether prompts that begin alike share what was computed.
        kv_bytes: the most that keys and values may take; None is what `max_sequences` full contexts take, or half of
            the memory there is, if that is less. Memory is taken from the machine as it is first used.
        draft: a smaller model that guesses for this one. Its keys and values are within the same bound: a block of its
            own is set aside for each.

    Raises:
        MemoryLimitError: `kv_bytes` is more than there is.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_sequences: int = MAX_SEQUENCES,
        max_rows: int = PREFILL_ROWS,
        max_waiting: int = MAX_WAITING,
        kv_bytes: int | None = None,
        prefix_cache: bool = True,
        draft: LanguageModel | None = None,
    ) -> None:
        self._block_bytes = model.kv_block_bytes + (draft.kv_block_bytes if draft else 0)
        available = min(m.backend.available_bytes() for m in (model, *([draft] if draft else [])))
        if kv_bytes is not None and kv_bytes > available:
            raise MemoryLimitError(
                "keys and values may not take more than there is", need_bytes=kv_bytes, have_bytes=available
            )
        context_blocks = -(-model.context_length // BLOCK_SIZE)
        allowed = int(available * KV_SHARE) if kv_bytes is None else kv_bytes
        self._more_memory = "free memory" if kv_bytes is None else "allow more kv_bytes"
        n_blocks = min(max_sequences * context_blocks, allowed // self._block_bytes)
        max_evictable = CACHED_CONTEXTS * context_blocks
        self.pool = BlockPool(n_blocks, max_evictable, shares=prefix_cache)
        self._scheduler = Scheduler(self.pool, max_sequences, max_rows)
        self._backend = model.backend
        self._runner = ModelRunner(model, n_blocks)
        self.drafts = Drafts(draft, n_blocks, max_evictable) if draft else None
        self._speculation = SpeculationController(self.drafts)
        self._max_waiting = max_waiting
        self._arrivals = count(1)
        # Whoever has the turn may touch the scheduler and its sequences; the lock guards what is below it. It is taken
        # by itself, since an interrupt may come between the lines of what a condition does in Python when it is left.
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)
        self._turn_of: int | None = None
        self._is_consistent = True  # false while what the turn is about is being changed; see _restore
        self._live: set[SequenceState] = set()
        self._submitted: deque[SequenceState] = deque()
        self._to_remove: deque[SequenceState] = deque()
        self._collected: deque[ConsumerRef] = deque()
        self._async: set[SequenceState] = set()  # those whose readers are asynchronous
        self._thread: threading.Thread | None = None

    def check(self, sequence: SequenceState) -> None:
        """Require that the cache can hold the sequence at its longest.

        Raises:
            MemoryLimitError: it cannot; says what it needs and what there is.
        """
        n_blocks = sequence.n_blocks_for(sequence.end)
        if n_blocks > self.pool.n_blocks:
            raise MemoryLimitError(
                f"keys and values of {sequence.end} tokens do not fit in memory",
                need_bytes=n_blocks * self._block_bytes,
                have_bytes=self.pool.n_blocks * self._block_bytes,
                remedy=f"ask for fewer tokens, or {self._more_memory}",
            )

    def submit(self, sequence: SequenceState, consumer: Consumer | None = None, *, wait: bool = False) -> None:
        """Queues a sequence; it runs as tokens are read from it, or from others.

        Args:
            sequence: new.
            reader: when this has been forgotten, the sequence is cancelled.
            wait: while the queue is full, run the others.

        Raises:
            MemoryLimitError: the cache cannot hold it.
            QueueFullError: too many wait already, and nothing was queued; with `wait`, none of them can go on.
        """
        self.check(sequence)

        def queued() -> bool:
            if self.full:
                return False
            sequence.arrival = next(self._arrivals)
            if consumer is not None:
                watch(consumer, sequence, self._collected)
            self._live.add(sequence)
            self._submitted.append(sequence)
            if sequence.notify is not None:
                self._async.add(sequence)
            self._update_if_free()
            return True

        # Asked and done under one lock: of several that wait for room, each takes what it saw.
        if wait:
            self.run_until(queued)
        else:
            with self._lock:
                queued()
        if not sequence.arrival:
            raise QueueFullError("too many texts are waiting for their turn", expected=f"at most {self._max_waiting}")

    @property
    def full(self) -> bool:
        """Whether the queue is."""
        return len(self._submitted) + len(self._scheduler.waiting) >= self._max_waiting

    def cancel(self, sequence: SequenceState) -> None:
        """Ends a sequence, if it has not ended: its blocks are free now, or when the step that is running ends."""
        with self._lock:
            sequence.done = True
            self._to_remove.append(sequence)
            self._update_if_free()

    def reclaim(self) -> None:
        """Frees the blocks of sequences that were forgotten, now, or when the step that is running ends."""
        with self._lock:
            self._update_if_free()

    def step(self) -> bool:
        """Runs one step for every sequence that can go on; False if there was none."""
        me = threading.get_ident()
        try:
            return self._take_turn(lambda: False) and self._step()
        finally:
            if self._turn_of == me:  # an interrupt may cut off what comes before this, and what comes now
                self._turn_of = None
            self.reclaim()

    def run_until(self, wanted: Callable[[], bool]) -> None:
        """Runs steps, or waits while another thread does, until `wanted()` holds or there is nothing to run."""
        me = threading.get_ident()
        while True:
            try:
                if not (self._take_turn(wanted) and self._step()):
                    return
            finally:
                if self._turn_of == me:
                    self._turn_of = None
                self.reclaim()

    def run_in_background(self) -> None:
        """Ensure that a thread runs the sequences of asynchronous readers.

        Raises:
            ThreadLimitError: none can be started.
        """
        with self._lock:
            self._turn.notify_all()
            if self._thread is None and self._async:
                thread = threading.Thread(target=self._run_async, name="rushlight")
                with naming_shortages("a thread"):
                    thread.start()
                self._thread = thread

    def _run_async(self) -> None:
        def wanted() -> bool:
            return self._turn_of is None and any(s.runnable for s in self._async)

        while True:
            with self._lock:
                if not self._turn.wait_for(wanted, LINGER_S) and not any(s.runnable for s in self._async):
                    self._thread = None
                    return
                if self._turn_of is not None:
                    continue
                self._turn_of = threading.get_ident()
            try:
                self._step()
            finally:
                self._turn_of = None
                self.reclaim()

    def _take_turn(self, wanted: Callable[[], bool]) -> bool:
        """Waits for the turn; False, without it, once `wanted()` holds."""
        me = threading.get_ident()
        with self._lock:
            while not wanted():
                if self._submitted or self._to_remove:
                    self._update_if_free()  # whoever had the turn may not have come to it
                # A turn that is still mine was cut off by an interrupt, between two lines.
                if self._turn_of in {None, me}:
                    self._turn_of = me
                    return True
                self._turn.wait(LINGER_S)  # an interrupt may have cut off the notice
        return False

    def _update_if_free(self) -> None:
        """Lets in who has arrived and out who has left, unless a step is running: it will do so when it ends."""
        if self._turn_of is not None:
            return
        self._turn_of = threading.get_ident()  # something that is forgotten may cancel in the middle of any line here
        try:
            if not self._is_consistent:
                self._restore()
            self._is_consistent = False
            while self._submitted:
                self._scheduler.add(self._submitted.popleft())
            while n_gone := len(self._collected):
                self._to_remove.extend(s for s in self._live if s.consumer is not None and s.consumer() is None)
                for _ in range(n_gone):
                    self._collected.popleft()
            while self._to_remove:
                self._remove(self._to_remove.popleft())
            self._is_consistent = True
        finally:
            self._turn_of = None
            self._turn.notify_all()

    def _remove(self, sequence: SequenceState) -> None:
        sequence.done = True
        sequence.consumer = None
        self._scheduler.remove(sequence)
        self._live.discard(sequence)
        self._async.discard(sequence)
        for proposer in sequence.proposers:
            proposer.forget()

    def _restore(self) -> None:
        """Makes all whole again after an interrupt in the middle of a change: texts begin again, to the same bits."""
        with self._lock:
            for sequence in self._live:
                if sequence.consumer is not None and sequence.consumer() is None:
                    sequence.done = True
            self._scheduler.restart(self._live.difference(self._submitted))
            if self.drafts is not None:
                self.drafts.reset(g for s in self._live for g in s.proposers if isinstance(g, Draft))
            self._live = {sequence for sequence in self._live if not sequence.done}
            self._async &= self._live
            self._is_consistent = True

    def _step(self) -> bool:
        if not self._is_consistent:
            self._restore()
        self._is_consistent = False
        rows = self._scheduler.next_rows()
        self._is_consistent = True
        if not rows:
            return False
        start = perf_counter()
        try:
            self._run_rows(rows)
        except BaseException as error:
            # What was interrupted is in no known state: all of it ends here, and its blocks are free.
            reason = error if isinstance(error, Exception) else GenerationError("interrupted")
            reason = shortage(reason, "a step of the model") or reason
            for sequence in rows:
                sequence.fail(reason)
                self._to_remove.append(sequence)
            if not isinstance(error, Exception):
                raise
        elapsed_s = perf_counter() - start
        for sequence in rows:
            if len(sequence.ids) - bool(sequence.n_pending) > sequence.n_prompt:
                sequence.decode_s += elapsed_s
            else:
                sequence.prefill_s += elapsed_s
            if sequence.notify is not None:
                sequence.notify()
        return True

    def _run_rows(self, rows: dict[SequenceState, int]) -> None:
        """Feeds to each sequence so many of its next tokens, and guesses after them where they pay."""
        decoding = all(s.decoding for s in rows)
        self._is_consistent = False
        guesses = self._speculation.draft(list(rows)) if decoding else {}
        self._is_consistent = True
        chunks = [
            Chunk(
                s.ids[s.n_computed : s.n_computed + n] + guesses.get(s, []),
                s.n_computed,
                s.blocks,
                all_logits=s.scores_prompt or s in guesses,
            )
            for s, n in rows.items()
        ]
        start = perf_counter()
        logits = self._runner.on_device(chunks)
        self._is_consistent = False
        choices: list[SampleTask] = []
        end = 0  # of the sequence's rows among the logits
        for (sequence, n), chunk in zip(rows.items(), chunks, strict=True):
            begin, end = end, end + (len(chunk.ids) if chunk.all_logits else 1)
            if sequence.scores_prompt:
                try:
                    sequence.score(host_rows(self._backend, logits, range(begin, end)))
                except GenerationError as error:
                    sequence.fail(error)
            sequence.n_computed += n
            if sequence.n_pending or sequence.done:
                continue
            if len(sequence.ids) == sequence.end:
                sequence.done = True  # only the prompt was asked about
            else:
                guessed = guesses.get(sequence, [])
                choices.append(SampleTask(sequence, range(end - 1 - len(guessed), end), guessed))
        sample(self._backend, logits, choices)
        if decoding:
            self._speculation.costs.record(sum(len(chunk.ids) for chunk in chunks), perf_counter() - start)
        for sequence in rows:
            self.pool.cache_full_blocks(sequence)
            if sequence.done:
                self._to_remove.append(sequence)
        self._is_consistent = True
