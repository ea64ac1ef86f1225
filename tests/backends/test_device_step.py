"""The layout of a step for array libraries, and its recordings."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.backends.device_step import MAX_PADDED_ROWS, Captured, HostStep, LastStep, Recordings, Scoring, padded
from rushlight.backends.protocol import NotRecordableError

SPARE = 99


class Cache:
    spares = (SPARE,)


def decode_batch(*positions):
    chunks = [Chunk([7 + i], position, range(10 * i, 10 * i + 5)) for i, position in enumerate(positions)]
    return Batch.of(chunks, Cache())


def on_device(batch):
    host = HostStep.of(batch, (SPARE,))
    return host.on_device(host.numbers)


def test_decode_rows_are_laid_out_together_and_prompt_chunks_apart():
    batch = Batch.of(
        [Chunk([1, 2, 3], BLOCK_SIZE - 1, [4, 2, 8]), Chunk([6], 5, [1]), Chunk([5], BLOCK_SIZE, [3, 7])], Cache()
    )
    step = on_device(batch)
    assert step.places.tolist() == [
        4 * BLOCK_SIZE + BLOCK_SIZE - 1, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 1, BLOCK_SIZE + 5, 7 * BLOCK_SIZE,
    ]  # fmt: skip
    assert step.decode_rows.tolist() == [3, 4]
    assert step.lengths.tolist() == [6, BLOCK_SIZE + 1]
    assert step.tables.tolist() == [[1, SPARE, SPARE, SPARE], [3, 7, SPARE, SPARE]]
    (chunk,) = step.prompt_chunks
    assert (chunk.rows, chunk.length, chunk.blocks.tolist()) == (slice(0, 3), BLOCK_SIZE + 2, [4, 2])
    assert (step.ids.tolist(), step.positions.tolist()) == (batch.ids.tolist(), batch.positions.tolist())
    assert step.logit_rows.tolist() == [2, 3, 4]
    assert step.cache is batch.cache


@pytest.mark.parametrize(("position", "width"), [(0, 4), (63, 4), (255, 4), (256, 8), (511, 8), (512, 16)])
def test_a_table_is_as_wide_as_the_longest_sequence_rounded_up_to_a_power_of_two(position, width):
    batch = Batch.of([Chunk([1], position, range(16)), Chunk([1], 0, [16])], Cache())
    assert on_device(batch).tables.shape == (2, width)
    known = [*range(position // BLOCK_SIZE + 1), *[SPARE] * width]
    assert on_device(batch).tables[0].tolist() == known[:width]


def test_without_decode_rows_the_table_is_empty():
    step = on_device(Batch.of([Chunk([1, 2], 0, [3])], Cache()))
    assert (len(step.decode_rows), len(step.lengths), len(step.tables)) == (0, 0, 0)


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (200, 256), (256, 256)])
def test_decode_steps_are_padded_to_powers_of_two(n, rows):
    batch = decode_batch(*range(1, n + 1))
    with_padding = padded(batch, (SPARE,))
    step = on_device(with_padding)
    assert len(with_padding.ids) == len(step.decode_rows) == len(step.logit_rows) == rows
    assert np.array_equal(with_padding.ids[:n], batch.ids)
    assert np.array_equal(step.tables[:n], on_device(batch).tables)
    assert (step.tables[n:] == SPARE).all()
    assert (step.lengths[n:] == 1).all()
    assert (step.places[n:] == SPARE * BLOCK_SIZE).all()


@pytest.mark.parametrize(
    "batch",
    [
        decode_batch(*range(1, MAX_PADDED_ROWS + 2)),
        decode_batch(3, 0),  # a prompt of one token
        Batch.of([Chunk([1, 2], 4, [0]), Chunk([3], 1, [1])], Cache()),
        replace(decode_batch(3, 4), logit_rows=np.array([1], np.int32)),
    ],
    ids=["too many rows", "a prompt", "a prompt chunk", "not every row's logits"],
)
def test_other_steps_are_not_padded(batch):
    assert padded(batch, (SPARE,)) is None


def test_the_last_step_is_reused_by_all_layers_and_keeps_no_cache_alive():
    uploads = []
    steps = LastStep(lambda numbers: uploads.append(1) or numbers)
    first, second = decode_batch(1, 2), decode_batch(1, 2)
    assert steps.of(first) is steps.of(first)
    assert len(uploads) == 1
    assert steps.of(first).cache is None
    assert steps.of(second) is not steps.of(first)
    assert steps.of(steps.of(second)) is steps.of(second)


def test_a_recording_serves_its_forward_and_shape_until_the_forward_changes():
    class Forward:
        version = 1

    made = []

    def make(other):
        made.append((len(made), other))
        return made[-1]

    recorded, first, second = Recordings(), Forward(), Forward()
    one, two = (HostStep.of(decode_batch(*positions), (SPARE,)) for positions in ([1], [1, 300]))
    for _ in range(2):
        for words, number in (((first, one), 0), ((first, two), 1), ((second, one), 2)):
            assert recorded.get(*words, make)[0] == number
    first.version = 2
    for words, number in (((first, one), 3), ((first, one), 3), ((second, one), 2)):
        assert recorded.get(*words, make)[0] == number
    second.version = 2
    assert recorded.get(second, one, make)[0] == 4
    # Each receives a recording of another forward, and never one of its own from before the change.
    assert [other and other[0] for _, other in made] == [None, 0, 0, 2, 3]


def test_a_changed_forward_receives_no_recording_from_before_the_change():
    forward = type("Forward", (), {"version": 1})()
    others, recorded, step = [], Recordings(), HostStep.of(decode_batch(1), (SPARE,))
    for version in (1, 2):
        forward.version = version
        recorded.get(forward, step, lambda other: others.append(other) or "recording")
    assert others == [None, None]


@pytest.mark.parametrize("name", ["row_starts", "block_tables", "spans"])
def test_a_forward_that_reads_the_layout_of_a_batch_cannot_be_recorded(name):
    step = on_device(decode_batch(1, 2))
    with pytest.raises(NotRecordableError, match=rf"the forward reads batch\.{name}, "):
        getattr(step, name)
    with pytest.raises(AttributeError):
        step.nonsense  # noqa: B018


class Model:
    version = 1


def test_a_step_that_cannot_be_recorded_runs_eagerly_and_is_logged_once(caplog):
    runs = []

    def run(batch):
        runs.append("recorded")
        raise NotRecordableError("the forward reads batch.spans")

    model = Model()
    captured = Captured(model, run, lambda batch: runs.append("eager") or batch, "cuda")
    with caplog.at_level(logging.INFO, "rushlight"):
        assert [captured(i) for i in range(3)] == [0, 1, 2]
        assert runs == ["recorded", "eager", "eager", "eager"]
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert record.message == "cuda runs this model without recorded steps: the forward reads batch.spans"
        model.version = 2  # its modules changed, so that it may be recordable now
        captured(3)
    assert runs[4:] == ["recorded", "eager"]


def test_other_errors_of_a_step_are_raised():
    def run(batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Captured(Model(), run, lambda batch: batch, "cuda")(None)


@pytest.mark.parametrize(
    ("window", "position", "block"), [(None, 500, 0), (1, 64, 1), (65, 128, 1), (66, 128, 0), (9, 3, 0)]
)
def test_the_first_block_that_a_window_reaches(window, position, block):
    assert Scoring(1.0, window).first_block(position) == block
