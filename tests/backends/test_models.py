"""Models on every backend: logits equal those of transformers, whatever else is in the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.checkpoint import open_checkpoint
from rushlight.generation import Context, LanguageModel
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.nn import bind

FIXTURES = Path(__file__).parents[1] / "fixtures" / "gpt2"
NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())


class FixtureModel:
    """A fixture's model on a device.

    Attributes:
        forward: the model.
        captured: the model as its backend runs it fastest.
        ids: the recorded prompt.
        continuation: the recorded greedy one.
        expected: transformers' logits of the prompt in float64.
    """

    def __init__(self, name, ops):
        folder = FIXTURES / name
        self.config = GPT2Config.from_json(json.loads((folder / "config.json").read_text()))
        self.ops = ops
        self.forward = GPT2(self.config)
        with open_checkpoint(folder) as checkpoint:
            bind(self.forward, checkpoint, ops, rules=GPT2.rules, tie=self.config.tie_word_embeddings, title=name)
        recorded = load_file(folder / "expected.safetensors")
        self.ids, self.continuation = recorded["prompt_ids"].tolist(), recorded["greedy_ids"].tolist()
        self.expected = recorded["logits_f64"]
        self.captured = ops.capture(self.forward)

    def logits(self, ids, *, forward=None, chunk_rows=512):
        context = Context(LanguageModel.of(forward or self.forward, self.ops, self.config), len(ids))
        return context.feed(ids, all_logits=True, chunk_rows=chunk_rows)

    def cache(self, n_blocks):
        return self.ops.kv_cache(self.config.kv_shape, n_blocks)


@pytest.fixture
def run(ops):
    """`run(name)`: a fixture's model on the device."""
    return lambda name: FixtureModel(name, ops)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(subject, run, name):
    model = run(name)
    error = np.abs(model.logits(model.ids) - model.expected).max() / np.abs(model.expected).max()
    assert error <= subject.logits_error


@pytest.mark.parametrize("name", ["gelu_new", "long_prompt"])
def test_greedy_tokens_equal_those_of_transformers(subject, run, name):
    model = run(name)
    logits = model.logits(model.ids + model.continuation[:-1], forward=model.captured)[len(model.ids) - 1 :]
    if subject.dtype in {"f32", "f64"}:
        assert logits.argmax(1).tolist() == model.continuation
    # A quantised model may prefer another token that is nearly as likely.
    taken = logits[np.arange(len(logits)), model.continuation]
    assert (logits.max(1) - taken <= 2 * subject.logits_error * np.abs(logits).max(1)).all()


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, BLOCK_SIZE])
def test_cached_and_chunked_logits_are_the_same(subject, run, chunk_rows, captured):
    model = run("long_prompt")
    forward = model.captured if captured else model.forward
    chunked = model.logits(model.ids, forward=forward, chunk_rows=chunk_rows)
    assert subject.same(chunked, model.logits(model.ids))


@pytest.mark.parametrize("captured", [False, True])
def test_batched_sequences_equal_solo_ones(subject, run, captured):
    """A prompt, the next chunk of another and a decode row in one step, over blocks in any order."""
    model = run("long_prompt")
    forward = model.captured if captured else model.forward
    ids, other, third = model.ids, model.ids[::-1], model.ids[3:60]
    cache = model.cache(10)
    forward(Batch.of([Chunk(other[:70], 0, [7, 1]), Chunk(third[:-1], 0, [5])], cache))
    chunks = [Chunk(ids, 0, [4, 0, 6], True), Chunk(third[-1:], len(third) - 1, [5]), Chunk(other[70:], 70, [7, 1, 3])]
    batched = model.ops.to_numpy(forward(Batch.of(chunks, cache)))
    assert subject.same(batched[: len(ids)], model.logits(ids))
    assert subject.same(batched[len(ids)], model.logits(third)[-1])
    assert subject.same(batched[-1], model.logits(other)[-1])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_decode_steps_of_any_number_of_rows(subject, run, n):
    """Different lengths, across a block boundary; each row's logits equal those of its sequence solo."""
    model = run("long_prompt")
    sequences = [(model.ids + model.continuation)[s : s + 62 + 7 * s] for s in range(n)]
    cache = model.cache(3 * n)
    tables = [range(3 * s, 3 * s + 3) for s in range(n)]
    model.captured(Batch.of([Chunk(ids[:-3], 0, table) for ids, table in zip(sequences, tables, strict=True)], cache))
    for back in (3, 2, 1):
        chunks = [Chunk([ids[-back]], len(ids) - back, table) for ids, table in zip(sequences, tables, strict=True)]
        step = model.ops.to_numpy(model.captured(Batch.of(chunks, cache)))
        solo = np.array([model.logits(ids[: len(ids) - back + 1])[-1] for ids in sequences])
        assert step.shape == solo.shape
        assert subject.same(step, solo)


def test_the_size_of_a_block_is_known_in_advance(run):
    model = run("gelu_new")
    shape = model.config.kv_shape
    block_bytes, available = model.ops.kv_block_bytes(shape), model.ops.available_bytes()
    assert block_bytes >= 2 * shape.n_layer * shape.n_kv_head * shape.head_dim * BLOCK_SIZE * 2  # of half precision
    assert available > 1000 * block_bytes


def test_a_captured_step_does_not_change_earlier_results(run):
    model = run("gelu_new")
    cache = model.cache(1)
    first = model.captured(Batch.of([Chunk([1, 2], 0, [0])], cache))
    second = model.captured(Batch.of([Chunk([3], 2, [0])], cache))
    kept = model.ops.to_numpy(second).copy()
    model.captured(Batch.of([Chunk([4], 3, [0])], cache))
    assert np.array_equal(model.ops.to_numpy(second), kept)
    assert not np.array_equal(model.ops.to_numpy(first), kept)
