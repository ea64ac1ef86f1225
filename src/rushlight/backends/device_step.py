"""Lays out a step for libraries that compute on entire arrays: decode rows in a rectangle, prompt chunks one by one.

Native code follows each row to its own blocks of the cache; a library of array operations cannot. So rows that are the
only ones of their sequence, as in decode, are computed together over a rectangle of blocks. The shapes of decode
steps are padded, so that few different ones occur and each can be recorded once and replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from operator import is_not
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Batch
from rushlight.backends.protocol import NotRecordableError, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rushlight.backends.batch import Span
    from rushlight.backends.protocol import Array, Forward, SamplingRow

MAX_PADDED_ROWS = 256
"""Decode steps of more rows come in too many shapes to keep a recording of each."""

MIN_TABLE_WIDTH = 4
"""Blocks in a table of decode rows, at least: narrower tables would save little, and add shapes."""

SAMPLED_LOGITS = 2**22
"""Logits that are sampled together, at most: each takes several doubles to sort and sum."""

Upload = Callable[[Sequence["NDArray[np.int32]"]], Sequence[Any]]
"""Arrays on the host -> the same on the device."""

_log = logging.getLogger("rushlight")


class PromptChunk(NamedTuple):
    """Several rows of one sequence.

    Attributes:
        rows: their numbers in the step.
        length: the sequence's positions up to and including these rows.
        blocks: (M,) the blocks that hold those positions, on the device.
    """

    rows: slice
    length: int
    blocks: Any


class Step(NamedTuple):
    """A batch as models read it, with its numbers on the device.

    Blocks, tables and places are those of the first group of layers; `of_group` has those of the others.

    Attributes:
        cache, unfold_rows, ids, positions, logit_rows: as in `Batch`.
        prompt_chunks: the rows of sequences that have several.
        places: (N,) each row's place in the cache, which has BLOCK_SIZE places per block.
        decode_rows: (S,) the rows that are the only ones of their sequence.
        lengths: (S,) the positions that each of them sees, its own included.
        tables: (S, W) their blocks; W is the number of blocks that the longest needs, rounded up to a power of two and
            at least MIN_TABLE_WIDTH. Shorter sequences have the spare block in the remaining columns.
        others: the same step for the other groups of layers.
    """

    cache: Any
    unfold_rows: Callable[[int, int], NDArray[np.int32]]
    prompt_chunks: tuple[PromptChunk, ...]
    ids: Any
    positions: Any
    logit_rows: Any
    places: Any
    decode_rows: Any
    lengths: Any
    tables: Any
    others: tuple[Step, ...] = ()

    def of_group(self, group: int) -> Step:
        """The step with the blocks of a group of layers."""
        return self.others[group - 1] if group else self

    def __getattr__(self, name: str) -> Any:
        if name in _ONLY_IN_BATCH:
            raise NotRecordableError(f"the forward reads batch.{name}, which differs between steps of the same shape")
        raise AttributeError(name)


_ONLY_IN_BATCH = {*(field.name for field in fields(Batch)), "spans", "tables"} - set(Step._fields)


class HostStep(NamedTuple):
    """The numbers of a step while they are on the host.

    Attributes:
        batch: the rows.
        numbers: ids, positions, logit_rows, decode_rows and lengths of `Step`; then for each group of layers places,
            tables, and the blocks of each prompt chunk.
        spans: the prompt chunks.
    """

    batch: Batch
    numbers: list[NDArray[np.int32]]
    spans: list[Span]

    @property
    def tables(self) -> NDArray[np.int32]:
        return self.numbers[_N_SHARED + 1]

    @classmethod
    def of(cls, batch: Batch, spares: Sequence[int]) -> HostStep:
        """The step of a batch over a cache whose block spares[g] belongs to no sequence in group g."""
        counts = np.diff(batch.row_starts)
        sequence = np.repeat(np.arange(len(counts)), counts)
        decodes = counts == 1
        decode_rows = batch.row_starts[:-1][decodes]
        lengths = batch.positions[decode_rows] + 1
        width = max(MIN_TABLE_WIDTH, _power_of_two(-(-int(lengths.max(initial=1)) // BLOCK_SIZE)))
        n_blocks = batch.positions[batch.row_starts[1:] - 1] // BLOCK_SIZE + 1
        numbers = [batch.ids, batch.positions, batch.logit_rows, decode_rows, lengths]
        spans = [] if decodes.all() else [span for span, one in zip(batch.spans(), decodes, strict=True) if not one]
        for group, spare in enumerate(spares):
            known = np.concatenate([table[:n] for table, n in zip(batch.tables(group), n_blocks.tolist(), strict=True)])
            blocks = np.full((len(counts), max(width, int(n_blocks.max()))), spare, np.int32)
            blocks[np.arange(blocks.shape[1]) < n_blocks[:, None]] = np.where(known < 0, spare, known)
            places = blocks[sequence, batch.positions // BLOCK_SIZE] * BLOCK_SIZE + batch.positions % BLOCK_SIZE
            chunks = [of[:n] for of, n, one in zip(blocks, n_blocks, decodes, strict=True) if not one] if spans else []
            numbers += [places, blocks[decodes, :width], *chunks]
        return cls(batch, numbers, spans)

    def on_device(self, numbers: Sequence[Any]) -> Step:
        """The step, from the device's copies of `numbers`."""
        ids, positions, logit_rows, decode_rows, lengths = numbers[:_N_SHARED]
        steps = []
        n_each = 2 + len(self.spans)
        for first in range(_N_SHARED, len(numbers), n_each):
            places, tables, *of_chunks = numbers[first : first + n_each]
            chunks = tuple(
                PromptChunk(span.rows, _length(span), blocks)
                for span, blocks in zip(self.spans, of_chunks, strict=True)
            )
            rows = self.batch.cache, self.batch.unfold_rows, chunks, ids, positions, logit_rows
            steps.append(Step(*rows, places, decode_rows, lengths, tables))
        return steps[0]._replace(others=tuple(steps[1:]))


_N_SHARED = 5
"""The numbers of a step that all groups of layers share."""


class Scoring(NamedTuple):
    """How attention scores are computed; the options of `Backend.attention`.

    Attributes:
        scale: of the products of queries and keys.
        window: the positions that a row sees; None is all.
        slopes: (H,) float32 on the device, or None.
        softcap: or None.
    """

    scale: float
    window: int | None = None
    slopes: Any = None
    softcap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether only the scale is used."""
        return self.window is None and self.slopes is None and self.softcap is None

    @property
    def changes_scores(self) -> bool:
        """Whether scores are more than scaled products."""
        return self.slopes is not None or self.softcap is not None

    def first_block(self, position: int) -> int:
        """The first block that a row at this position sees."""
        return 0 if self.window is None else max(0, position - self.window + 1) // BLOCK_SIZE


def attend(
    step: Step, out: Callable[[], Any], decode: Callable[[Any], Any], prefill: Callable[[PromptChunk], Any]
) -> Any:
    """Attention of a step's N rows: the decode rows together, the prompt chunks one by one. -> (N, H, D)

    Args:
        step: the step.
        out: allocates the result; called only if there are prompt chunks.
        decode: the decode rows, as an index into the N rows -> (S, H, D).
        prefill: a prompt chunk of n rows -> (n, H, D).
    """
    if not step.prompt_chunks:
        return decode(slice(None))
    result = out()
    if len(step.decode_rows):
        result[step.decode_rows] = decode(step.decode_rows)
    for chunk in step.prompt_chunks:
        result[chunk.rows] = prefill(chunk)
    return result


class LastStep:
    """Turns a batch into a step on the device, once for all layers of a forward."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._parts: tuple[Any, ...] = ()
        self._spares: Sequence[int] = ()
        self._step: Step | None = None

    def of(self, batch: Batch | Step) -> Step:
        """The batch's step; a step is returned unchanged."""
        if isinstance(batch, Step):
            return batch
        batch.require_cache()
        # The batch itself is not kept: it would keep its cache alive.
        parts = (batch.row_starts, batch.positions, batch.block_tables)
        spares = tuple(batch.cache.spares)
        if self._step is None or self._spares != spares or any(map(is_not, self._parts, parts)):
            host = HostStep.of(replace(batch, cache=None), spares)
            self._step = host.on_device(self._upload(host.numbers))
            self._parts, self._spares = parts, spares
        return self._step


Recording = TypeVar("Recording")


class Recordings(Generic[Recording]):
    """The recordings of decode steps over one cache, by forward and shape."""

    def __init__(self) -> None:
        self._made: dict[Forward, tuple[int, dict[tuple[int, ...], Recording]]] = {}

    def get(self, forward: Forward, host: HostStep, record: Callable[[Recording | None], Recording]) -> Recording:
        """The recording of this forward for a step of this shape, made by `record` if there is none.

        A forward's recordings are dropped when its modules change. `record` receives any other recording of this cache,
        or None.
        """
        now = version_of(forward)
        if self._made.get(forward, (now,))[0] != now:
            del self._made[forward]
        made = self._made.setdefault(forward, (now, {}))[1]
        shape = host.tables.shape
        if shape not in made:
            others = (recording for _, each in self._made.values() for recording in each.values())
            made[shape] = record(next(others, None))
        return made[shape]


class Captured:
    """A forward that runs recorded steps until one cannot be recorded, and eagerly from then on.

    Args:
        forward: the model.
        run: runs a step, recorded where that is possible; raises NotRecordableError.
        run_eagerly: runs the forward on the batch without recording.
        device: for the log.
    """

    def __init__(
        self, forward: Forward, run: Callable[[Batch], Array], run_eagerly: Callable[[Batch], Array], device: str
    ) -> None:
        self._forward = forward
        self._run = run
        self._run_eagerly = run_eagerly
        self._device = device
        self._eager_version: int | None = None

    @property
    def version(self) -> int:
        """That of the forward."""
        return version_of(self._forward)

    def __call__(self, batch: Batch) -> Array:
        if self._eager_version != version_of(self._forward):  # a changed module may be recordable
            try:
                return self._run(batch)
            except NotRecordableError as reason:
                self._eager_version = version_of(self._forward)
                _log.info("%s runs this model without recorded steps: %s", self._device, reason)
        return self._run_eagerly(batch)


def padded(batch: Batch, spares: Sequence[int]) -> Batch | None:
    """A decode step's batch with rows added up to a power of two, so that few shapes occur; None for other steps.

    The added rows come last. Each is a sequence of one position, in the block spares[g] of each group g of layers.
    """
    n = len(batch.ids)
    one_each = n == len(batch.row_starts) - 1 == len(batch.logit_rows)
    # At position 0 a row is an entire prompt, which some models treat differently from a continued one.
    if not one_each or n > MAX_PADDED_ROWS or not batch.positions.all():
        return None
    rows = _power_of_two(n)
    if rows == n:
        return batch
    return Batch(
        ids=np.pad(batch.ids, (0, rows - n)),
        positions=np.pad(batch.positions, (0, rows - n)),
        row_starts=np.arange(rows + 1, dtype=np.int32),
        block_tables=tuple(
            (*batch.tables(group), *[np.array([spare], np.int32)] * (rows - n)) for group, spare in enumerate(spares)
        ),
        logit_rows=np.arange(rows, dtype=np.int32),
        cache=batch.cache,
    )


def allowed_tokens(rows: Sequence[SamplingRow], vocab_size: int) -> NDArray[np.bool_] | None:
    """The tokens that may be sampled: the rows' array, (V,), if they share one, otherwise (R, V). None allows all."""
    first = rows[0].allowed if rows else None
    if all(row.allowed is first for row in rows):
        return first
    everything = np.ones(vocab_size, np.bool_)
    return np.stack([everything if row.allowed is None else row.allowed for row in rows])


def in_parts(rows: Sequence[int], vocab_size: int) -> Iterator[Sequence[int]]:
    """The rows in parts of at most SAMPLED_LOGITS logits."""
    n = max(1, SAMPLED_LOGITS // vocab_size)
    return (rows[start : start + n] for start in range(0, len(rows), n))


def _length(span: Span) -> int:
    """The positions of a sequence up to and including this step's."""
    n_rows: int = span.rows.stop - span.rows.start
    return span.position + n_rows


def _power_of_two(n: int) -> int:
    """The smallest one that is at least n, which is 1 or more."""
    return 1 << (n - 1).bit_length()
