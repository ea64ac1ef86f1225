"""A step's rows for libraries that compute whole arrays at once: decode rows side by side, in shapes that come back.

A library of array operations cannot follow each row to its own blocks as native code does. Rows that are alone in
their sequence, as in decode, are computed together over a rectangle of blocks; longer runs of rows one sequence after
another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import is_not
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rushlight.backends.batch import Span
    from rushlight.backends.protocol import Forward, SamplingRow

MAX_PADDED_ROWS = 256
"""Decode steps of more rows come in too many shapes to keep one of each ready."""

LEAST_TABLE_WIDTH = 4
"""Blocks in a table of rows that are alone, at the least: narrower ones would save little, and be more shapes."""

Upload = Callable[[Sequence["NDArray[np.int32]"]], Sequence[Any]]
"""Arrays on the host -> the same on the device."""


class Run(NamedTuple):
    """Several rows of one sequence.

    Attributes:
        rows: which.
        length: the sequence's positions, those of these rows included.
        blocks: (M,) the blocks that hold them, on the device.
    """

    rows: slice
    length: int
    blocks: Any


class Step(NamedTuple):
    """A batch as models read it, with its numbers on the device.

    Attributes:
        cache, unfold_rows, ids, positions, logit_rows: as in `Batch`.
        slots: (N,) each row's place in the cache, which has BLOCK_SIZE places a block.
        single: (S,) the rows that are alone in their sequence.
        lengths: (S,) how many positions each of them sees, itself included.
        tables: (S, W) their blocks, W what the longest needs, up to a power of two and at least LEAST_TABLE_WIDTH;
            `spare` where one has no more.
        runs: the other sequences' rows.
    """

    cache: Any
    unfold_rows: Callable[[int, int], NDArray[np.int32]]
    runs: tuple[Run, ...]
    ids: Any
    positions: Any
    logit_rows: Any
    slots: Any
    single: Any
    lengths: Any
    tables: Any


class HostStep(NamedTuple):
    """What a step needs on the device, while it is on the host.

    Attributes:
        batch: the rows.
        numbers: those of `Step` from ids on, then each run's blocks.
        spans: the runs.
    """

    batch: Batch
    numbers: list[NDArray[np.int32]]
    spans: list[Span]

    @property
    def tables(self) -> NDArray[np.int32]:
        return self.numbers[6]

    @classmethod
    def of(cls, batch: Batch, spare: int) -> HostStep:
        """The step of a batch over a cache whose block `spare` belongs to no sequence."""
        counts = np.diff(batch.row_starts)
        sequence = np.repeat(np.arange(len(counts)), counts)
        blocks = batch.block_tables[sequence, batch.positions // BLOCK_SIZE]
        alone = counts == 1
        single = batch.row_starts[:-1][alone]
        lengths = batch.positions[single] + 1
        width = max(LEAST_TABLE_WIDTH, _power_of_two(-(-int(lengths.max(initial=1)) // BLOCK_SIZE)))
        known = batch.block_tables[alone, :width]
        tables = np.full((len(single), width), spare, np.int32)
        tables[:, : known.shape[1]] = np.where(known < 0, spare, known)
        slots = blocks * BLOCK_SIZE + batch.positions % BLOCK_SIZE
        spans = [] if alone.all() else [span for span, one in zip(batch.spans(), alone, strict=True) if not one]
        runs = [span.blocks[: -(-_length(span) // BLOCK_SIZE)] for span in spans]
        numbers = [batch.ids, batch.positions, batch.logit_rows, slots, single, lengths, tables, *runs]
        return cls(batch, numbers, spans)

    def on_device(self, numbers: Sequence[Any]) -> Step:
        """The step with the device's copies of `numbers`."""
        of_rows, of_runs = numbers[:7], zip(self.spans, numbers[7:], strict=True)
        runs = tuple(Run(span.rows, _length(span), blocks) for span, blocks in of_runs)
        return Step(self.batch.cache, self.batch.unfold_rows, runs, *of_rows)


def attend(step: Step, out: Callable[[], Any], decode: Callable[[Any], Any], prefill: Callable[[Run], Any]) -> Any:
    """Attention of a step's N rows: those that are alone side by side, the runs one after another. -> (N, H, D)

    Args:
        step: whose rows.
        out: makes room for the result, where there are runs.
        decode: some rows that are alone, as an index of the N -> (S, H, D).
        prefill: a run of n rows -> (n, H, D).
    """
    if not step.runs:
        return decode(slice(None))
    result = out()
    if len(step.single):
        result[step.single] = decode(step.single)
    for run in step.runs:
        result[run.rows] = prefill(run)
    return result


class LastStep:
    """Turns a batch into a step on the device, once for all the layers that ask one after another."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._parts: tuple[Any, ...] = ()
        self._spare = -1
        self._step: Step | None = None

    def of(self, batch: Batch | Step) -> Step:
        """The batch's step; a step's is itself."""
        if isinstance(batch, Step):
            return batch
        # Not the batch itself is kept: it would hold its cache.
        parts = (batch.row_starts, batch.positions, batch.block_tables)
        spare = batch.cache.spare
        if self._step is None or self._spare != spare or any(map(is_not, self._parts, parts)):
            host = HostStep.of(replace(batch, cache=None), spare)
            self._step = host.on_device(self._upload(host.numbers))
            self._parts, self._spare = parts, spare
        return self._step


Recording = TypeVar("Recording")


class Recorded(Generic[Recording]):
    """What was recorded of forwards for the decode steps over one cache: one recording a forward and shape."""

    def __init__(self) -> None:
        self._made: dict[object, tuple[int, dict[tuple[int, ...], Recording]]] = {}

    def of(self, forward: Forward, host: HostStep, make: Callable[[Recording | None], Recording]) -> Recording:
        """The recording of this forward for a step of this shape, made anew once its modules have changed.

        `make` is given one of the other recordings, if there are any.
        """
        version: int = getattr(forward, "version", 0)  # plain functions do not change
        if self._made.get(forward, (version,))[0] != version:
            del self._made[forward]
        made = self._made.setdefault(forward, (version, {}))[1]
        shape = host.tables.shape
        if shape not in made:
            others = (recording for _, each in self._made.values() for recording in each.values())
            made[shape] = make(next(others, None))
        return made[shape]


def padded(batch: Batch, spare: int) -> Batch | None:
    """A decode step's batch with rows added up to a power of two, so that few shapes occur; None if it is no such step.

    The rows added come last. Each is a sequence of its own with one position, in the block `spare`.
    """
    n = len(batch.ids)
    one_each = n == len(batch.row_starts) - 1 == len(batch.logit_rows)
    # At position 0 a row is a whole prompt, which some models treat otherwise than one that goes on.
    if not one_each or n > MAX_PADDED_ROWS or not batch.positions.all():
        return None
    rows = _power_of_two(n)
    if rows == n:
        return batch
    tables = np.full((rows, batch.block_tables.shape[1]), spare, np.int32)
    tables[:n] = batch.block_tables
    return Batch(
        ids=np.pad(batch.ids, (0, rows - n)),
        positions=np.pad(batch.positions, (0, rows - n)),
        row_starts=np.arange(rows + 1, dtype=np.int32),
        block_tables=tables,
        logit_rows=np.arange(rows, dtype=np.int32),
        cache=batch.cache,
    )


def allowed_tokens(draws: Sequence[SamplingRow], vocab_size: int) -> NDArray[np.bool_] | None:
    """Which tokens may be chosen: (V,) where the draws agree, and then the very array that they hold; else (R, V).

    None is every token.
    """
    first = draws[0].allowed if draws else None
    if all(draw.allowed is first for draw in draws):
        return first
    everything = np.ones(vocab_size, np.bool_)
    return np.stack([everything if draw.allowed is None else draw.allowed for draw in draws])


def _length(span: Span) -> int:
    """The positions of a sequence, those of this step included."""
    n_rows: int = span.rows.stop - span.rows.start
    return span.position + n_rows


def _power_of_two(n: int) -> int:
    """The least that is not below n, which is 1 or more."""
    return 1 << (n - 1).bit_length()
