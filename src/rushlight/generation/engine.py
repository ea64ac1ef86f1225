"""The engine: continuous batching of many sequences, submitted and read from any thread."""

from __future__ import annotations

import threading
from collections import deque
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS
from rushlight.errors import GenerationError, MemoryLimitError, QueueFullError
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.consistency import Consistency
from rushlight.generation.kv_budget import divide
from rushlight.generation.scheduler import Scheduler
from rushlight.generation.speculation.draft_model import DraftModelProposer
from rushlight.generation.speculation.prompt_lookup import PromptLookup
from rushlight.generation.step import StepRunner
from rushlight.host.memory import KV_SHARE, naming_shortages, shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.generation.consumer import Consumer, ConsumerRef
    from rushlight.generation.runner import LanguageModel
    from rushlight.generation.sequence import SequenceState
    from rushlight.generation.speculation.proposer import Proposer

MAX_SEQUENCES = 64
"""The most sequences in a step; others wait."""

MAX_WAITING = 1024
"""The most sequences in the queue."""

CACHED_CONTEXTS = 4
"""The prefix cache keeps blocks of past prompts for this many full contexts before it evicts any."""

CACHED_SHARE = 0.25
"""... but at most this share of the blocks, and so of the memory that keys and values may take. Does not apply if
`kv_bytes` is set."""

LINGER_S = 0.1
"""How long the background thread waits for work before it ends."""


class EngineStats(NamedTuple):
    """The load of an engine at one moment, and its totals since it was created.

    Attributes:
        n_waiting: sequences in the queue.
        n_running: sequences that have blocks.
        n_blocks_held: KV blocks of running sequences.
        n_blocks_cached: KV blocks that only the prefix cache keeps; they are evicted when needed.
        n_blocks_free: all other KV blocks.
        n_steps: forwards of the model.
        n_computed_tokens: tokens computed, of prompts and outputs; rejected draft tokens are not counted.
        n_cached_tokens: prompt tokens that the prefix cache saved from being computed.
        n_sampled_tokens: tokens of outputs.
        n_drafted: draft tokens verified.
        n_accepted: draft tokens accepted.
    """

    n_waiting: int
    n_running: int
    n_blocks_held: int
    n_blocks_cached: int
    n_blocks_free: int
    n_steps: int
    n_computed_tokens: int
    n_cached_tokens: int
    n_sampled_tokens: int
    n_drafted: int
    n_accepted: int

    @property
    def acceptance_rate(self) -> float | None:
        """The share of draft tokens that were accepted; None if there were none."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None


class Engine:
    """Runs sequences in one batch, so that weights are read once for all; no output depends on the batch.

    No thread is dedicated to running steps. One of the threads that wait for tokens takes the turn and runs steps for
    all sequences; the others wait for the results. For asynchronous consumers, which must not block, a background
    thread runs the steps; it ends when there is nothing to do. Every method may be called from any thread.

    Args:
        model: the model.
        max_sequences: the most sequences in a step.
        max_prefill_rows: the most prompt tokens in a step.
        max_waiting: the most sequences in the queue.
        kv_bytes: the most memory that keys and values may take; None is the memory of `max_sequences` full contexts, or
            half of the available memory if that is less. It is allocated as it is used.
        prefix_cache: whether prompts share the blocks of equal prefixes.
        speculation: whether draft tokens are proposed.
        draft: a smaller model that proposes draft tokens. Its keys and values count towards `kv_bytes`: its cache has
            as many blocks.

    Attributes:
        pool: the blocks of the KV cache.

    Raises:
        MemoryLimitError: `kv_bytes` exceeds the available memory.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_sequences: int = MAX_SEQUENCES,
        max_prefill_rows: int = PREFILL_ROWS,
        max_waiting: int = MAX_WAITING,
        kv_bytes: int | None = None,
        prefix_cache: bool = True,
        speculation: bool = True,
        draft: LanguageModel | None = None,
    ) -> None:
        models = [model] if draft is None else [model, draft]
        available = min(each.backend.available_bytes() for each in models)
        if kv_bytes is not None and kv_bytes > available:
            raise MemoryLimitError("kv_bytes exceeds the available memory", need_bytes=kv_bytes, have_bytes=available)
        allowed = int(available * KV_SHARE) if kv_bytes is None else kv_bytes
        more = "free memory" if kv_bytes is None else "raise kv_bytes"
        self._remedy = (
            f"request fewer tokens (--context, --max-tokens), keep weights in fewer bits (--dtype), or {more}"
        )
        max_cached = CACHED_CONTEXTS * -(-model.context_length // BLOCK_SIZE)
        share = CACHED_SHARE if kv_bytes is None else 1.0
        pools = [
            BlockPool(
                each.kv_shape.groups,
                n_blocks,
                [min(max_cached, int(n * share)) for n in n_blocks],
                max_rows=max_prefill_rows,
                has_prefix_cache=prefix_cache,
            )
            for each, n_blocks in zip(models, divide(models, allowed, max_sequences, max_prefill_rows), strict=True)
        ]
        self._pools = list(zip(models, pools, strict=True))
        self.pool = pools[0]
        proposers: list[Proposer] = [PromptLookup()] if speculation else []
        if draft is not None:
            proposers.append(DraftModelProposer(draft, pools[1]))
        self._model = model
        self._version = model.version
        self._consistency = Consistency()
        self._steps = StepRunner(model, self.pool, proposers, self._consistency)
        self._scheduler = Scheduler(self.pool, max_sequences, max_prefill_rows, model.max_scored_rows)
        self._max_waiting = max_waiting
        self._arrivals = count(1)
        # Only the thread that has the turn touches the scheduler and its sequences; the lock guards the attributes
        # below. The lock is separate from the condition, whose exit takes several lines of Python that an interrupt
        # could split.
        self._lock = threading.RLock()
        self._turn = threading.Condition(self._lock)
        self._turn_of: int | None = None
        self._live: set[SequenceState] = set()
        self._submitted: deque[SequenceState] = deque()
        self._to_remove: deque[SequenceState] = deque()
        self._collected: deque[ConsumerRef] = deque()
        self._async: set[SequenceState] = set()  # sequences of asynchronous consumers
        self._thread: threading.Thread | None = None

    def check_capacity(self, sequence: SequenceState) -> None:
        """Checks that the KV cache can hold the sequence at its longest.

        Raises:
            MemoryLimitError: it cannot; the error states both sizes.
        """
        need_bytes = have_bytes = 0
        for model, pool in self._pools:
            needs = pool.n_blocks_for(sequence.end)
            for group, part, need in zip(pool.groups, pool.parts, needs, strict=True):
                block_bytes = model.backend.kv_block_bytes(group)
                need_bytes += need * block_bytes
                have_bytes += min(need, part.n_blocks) * block_bytes
        if have_bytes < need_bytes:
            raise MemoryLimitError(
                f"keys and values of {sequence.end} tokens do not fit in memory",
                need_bytes=need_bytes,
                have_bytes=have_bytes,
                remedy=self._remedy,
            )

    def submit(self, sequence: SequenceState, consumer: Consumer | None = None, *, wait: bool = False) -> None:
        """Queues a new sequence; reading tokens of any sequence advances it.

        Args:
            sequence: a sequence that was not submitted before.
            consumer: when it is garbage-collected, the sequence is cancelled.
            wait: run steps while the queue is full.

        Raises:
            MemoryLimitError: the KV cache cannot hold it.
            QueueFullError: the queue is full; with `wait`, and no sequence can advance. Nothing was queued.
        """
        self.check_capacity(sequence)

        def queued() -> bool:
            if self.full:
                return False
            sequence.arrival = next(self._arrivals)
            if consumer is not None:
                sequence.watch(consumer, self._collected)
            self._live.add(sequence)
            self._submitted.append(sequence)
            if sequence.notify is not None:
                self._async.add(sequence)
            self._update_unless_running()
            return True

        # Checked and queued under one lock, so that no other thread takes the room in between.
        if wait:
            self.run_until(queued)
        else:
            with self._lock:
                queued()
        if not sequence.arrival:
            raise QueueFullError(
                "too many sequences are waiting", expected=f"at most {self._max_waiting}", remedy="retry later"
            )

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return len(self._submitted) + len(self._scheduler.waiting) >= self._max_waiting

    def cancel(self, sequence: SequenceState) -> None:
        """Ends a sequence, if it has not ended. Its blocks are freed now, or when the running step ends."""
        with self._lock:
            sequence.done = True
            self._to_remove.append(sequence)
            self._update_unless_running()

    def reclaim(self) -> None:
        """Frees the blocks of sequences whose consumer was collected, now or when the running step ends."""
        with self._lock:
            self._update_unless_running()

    def stats(self) -> EngineStats:
        """Load and totals. While a step runs, they may mix values from before and after it."""
        pool, steps = self.pool, self._steps
        with self._lock:
            self._update_unless_running()  # sequences whose consumer was collected are still counted otherwise
            n_held, n_cached = pool.n_held, pool.n_evictable
            return EngineStats(
                n_waiting=len(self._submitted) + len(self._scheduler.waiting),
                n_running=len(self._scheduler.running),
                n_blocks_held=n_held,
                n_blocks_cached=n_cached,
                n_blocks_free=pool.n_blocks - n_held - n_cached,
                n_steps=steps.n_steps,
                n_computed_tokens=steps.n_computed,
                n_cached_tokens=self._scheduler.n_cached_tokens,
                n_sampled_tokens=steps.n_sampled,
                n_drafted=steps.n_drafted,
                n_accepted=steps.n_accepted,
            )

    def step(self) -> bool:
        """Runs one step for every sequence that can advance; False if there was none."""
        me = threading.get_ident()
        try:
            return self._take_turn(lambda: False) and self._step()
        finally:
            if self._turn_of == me:  # an interrupt may skip either line: the next turn makes up for it
                self._turn_of = None
            self.reclaim()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Runs steps, or waits for a thread that does, until `condition()` is true or no sequence can advance."""
        me = threading.get_ident()
        while True:
            try:
                if not (self._take_turn(condition) and self._step()):
                    return
            finally:
                if self._turn_of == me:
                    self._turn_of = None
                self.reclaim()

    def run_in_background(self) -> None:
        """Starts a thread that runs the sequences of asynchronous consumers, unless one is running.

        Raises:
            ThreadLimitError: no thread can be started.
        """
        with self._lock:
            self._turn.notify_all()
            if self._thread is None and self._async:
                thread = threading.Thread(target=self._run_async, name="rushlight")
                with naming_shortages("a thread"):
                    thread.start()
                self._thread = thread

    def _run_async(self) -> None:
        def has_work() -> bool:
            return self._turn_of is None and any(s.runnable for s in self._async)

        while True:
            with self._lock:
                if not self._turn.wait_for(has_work, LINGER_S) and not any(s.runnable for s in self._async):
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

    def _take_turn(self, condition: Callable[[], bool]) -> bool:
        """Waits for the turn; returns False without the turn once `condition()` is true."""
        me = threading.get_ident()
        try:
            with self._lock:
                while not condition():
                    if self._submitted or self._to_remove:
                        self._update_unless_running()  # an interrupt may have prevented it at the end of the last turn
                    # If this thread still has the turn, an interrupt prevented its release.
                    if self._turn_of in {None, me}:
                        self._turn_of = me
                        return True
                    self._turn.wait(LINGER_S)  # with a timeout: an interrupt may have prevented the notification
        except RuntimeError as error:
            if isinstance(
                error.__context__, KeyboardInterrupt
            ):  # before `wait` had the lock again, for `with` to release
                raise error.__context__ from None
            raise
        return False

    def _update_unless_running(self) -> None:
        """Admits submitted sequences and removes finished or cancelled ones; a running step does so when it ends."""
        if self._turn_of is not None:
            return
        self._turn_of = threading.get_ident()  # garbage collection may call `cancel` at any line below
        try:
            self._ensure_valid_state()
            with self._consistency:
                while self._submitted:
                    self._scheduler.add(self._submitted.popleft())
                while n_collected := len(self._collected):
                    self._to_remove.extend(s for s in self._live if s.is_abandoned)
                    for _ in range(n_collected):
                        self._collected.popleft()
                while self._to_remove:
                    self._remove(self._to_remove.popleft())
        finally:
            self._turn_of = None
            self._turn.notify_all()

    def _remove(self, sequence: SequenceState) -> None:
        sequence.done = True
        sequence.consumer = None
        self._scheduler.remove(sequence)
        self._live.discard(sequence)
        self._async.discard(sequence)
        self._steps.speculation.forget(sequence)

    def _ensure_valid_state(self) -> None:
        """Recomputes all sequences if an interrupt left the state inconsistent, or if the model has changed.

        After an interrupt, the bits are the same.
        """
        version = self._model.version
        if self._consistency.holds and version == self._version:
            return
        with self._lock, self._consistency:
            for sequence in self._live:
                if sequence.is_abandoned:
                    sequence.done = True
            self._scheduler.restart(self._live.difference(self._submitted))
            self._steps.speculation.reset()
            self._live = {sequence for sequence in self._live if not sequence.done}
            self._async &= self._live
            self._version = version

    def _step(self) -> bool:
        """Runs a step in this thread, which has the turn; False if no sequence can advance."""
        self._ensure_valid_state()
        with self._consistency:
            rows = self._scheduler.next_rows()
        if not rows:
            return False
        start = perf_counter()
        try:
            self._to_remove.extend(self._steps.run(rows))
        except BaseException as error:
            # The state of these sequences is unknown: they end with an error, and their blocks are released.
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
