"""Captured forwards: recorded once for a shape and replayed with the same results and errors."""

import itertools
import logging
import threading
from typing import ClassVar

import numpy as np
import pytest
from native_helpers import ArrayTensor, random

from rushlight.backends.batch import Batch, Chunk, KVShape
from rushlight.backends.cpu import MAX_PLANS, MAX_RECORDED_ROWS, CPUBackend
from rushlight.backends.protocol import NotRecordableError, Role, SamplingRow
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.nn import Activation, bind

CONFIG = GPT2Config(vocab_size=70, n_positions=200, n_embd=40, n_layer=3, n_head=2, n_inner=72)


class NamedTensor(ArrayTensor):
    def __init__(self, name, values):
        super().__init__(values)
        self.name = name


def bound(model, ops, scale=0.4):
    """A model with random weights on a backend."""
    tensors = {
        name: NamedTensor(name, scale * random(*slot.shape, seed=i))
        for i, (name, slot) in enumerate(model.named_slots())
    }
    bind(model, tensors, ops, rules=GPT2.rules, tie=False, title="random")
    return model


def gpt2(ops):
    return bound(GPT2(CONFIG), ops)


class Calls:
    """A forward that counts how often it is called."""

    def __init__(self, forward):
        self.forward, self.n = forward, 0

    def __call__(self, batch):
        self.n += 1
        return self.forward(batch)


def steps(n_sequences, n, *, width=1, seed=0):
    """Chunks of n steps of sequences with different lengths and blocks, `width` tokens of each in every step."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (n, n_sequences, width)).tolist()
    return [
        [Chunk(tokens, (60 + 3 * s if s else 0) + width * step, [2 * s + 1, 2 * s]) for s, tokens in enumerate(row)]
        for step, row in enumerate(ids)
    ]


def run(forward, ops, chunks, kv_shape=CONFIG.kv_shape):
    cache = ops.kv_cache(kv_shape, 16)
    return [np.array(forward(Batch.of(step, cache))) for step in chunks]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("n_sequences", "width"), [(1, 1), (5, 1), (2, 3)])
def test_a_plan_is_bit_identical_to_the_eager_forward(isa, requested, threads, n_sequences, width):
    ops = CPUBackend(requested, threads=threads, isa=isa)
    model = gpt2(ops)
    calls = Calls(model)
    chunks = steps(n_sequences, 8, width=width)
    for plain, captured in zip(run(model, ops, chunks), run(ops.capture(calls), ops, chunks), strict=True):
        assert np.array_equal(plain, captured)
    assert calls.n == 2


def test_a_plan_fits_any_split_of_its_rows_into_sequences():
    ops = CPUBackend(threads=2)
    model = gpt2(ops)
    calls = Calls(model)
    chunks = [
        [Chunk([1, 2, 3], 0, [0]), Chunk([4], 70, [1, 2])],
        [Chunk([5], 3, [0]), Chunk([6, 7, 8], 71, [1, 2])],
        [Chunk([9, 10], 4, [0]), Chunk([11, 12], 74, [1, 2])],
    ]
    for plain, captured in zip(run(model, ops, chunks), run(ops.capture(calls), ops, chunks), strict=True):
        assert np.array_equal(plain, captured)
    assert calls.n == 2


def test_a_plan_is_not_used_for_a_cache_in_another_format():
    ops = CPUBackend("f16", threads=2)
    model = gpt2(ops)
    forward = ops.capture(model)
    chunks = steps(2, 6)
    run(forward, ops, chunks)
    shape = CONFIG.kv_shape
    plain, captured = (
        [np.array(each(Batch.of(step, cache))) for step in chunks]
        for each in (model, forward)
        for cache in [ops._native.kv_cache("f32", shape.n_layer, shape.n_kv_head, shape.head_dim, 16)]
    )
    for a, b, halves in zip(plain, captured, run(model, ops, chunks), strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, halves)


def test_results_do_not_change_when_the_plan_runs_again():
    ops = CPUBackend(threads=2)
    forward = ops.capture(gpt2(ops))
    cache = ops.kv_cache(CONFIG.kv_shape, 2)
    results = [forward(Batch.of([Chunk([i], i, [0, 1])], cache)) for i in range(5)]
    before = [np.array(result) for result in results]
    forward(Batch.of([Chunk([9], 5, [0, 1])], cache))
    assert all(np.array_equal(result, old) for result, old in zip(results, before, strict=True))


def test_steps_of_many_rows_are_not_recorded():
    ops = CPUBackend()
    calls = Calls(gpt2(ops))
    run(ops.capture(calls), ops, [[Chunk([1] * (MAX_RECORDED_ROWS + 1), 0, [0, 1])]] * 4)
    assert calls.n == 4


def test_the_least_recently_used_plan_is_evicted():
    ops = CPUBackend()
    forward = ops.capture(gpt2(ops))
    for n in range(1, MAX_PLANS + 5):
        run(forward, ops, [[Chunk([1] * n, 0, [0])]] * 3)
    assert len(forward._plans) == MAX_PLANS


def logits(model, x, batch):
    return model.lm_head(model.ln_f(model.ops.take(x, batch.logit_rows)))


class Reads(GPT2):
    reason = "reads the values of an array in the middle of the step"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        np.asarray(x).sum()
        return logits(self, x, batch)


class ComputesInNumPy(GPT2):
    reason = "reads the values of an array"

    def __call__(self, batch):
        x = np.asarray(self.wte(batch.ids)) * np.float32(2)
        return logits(self, self.ops.from_numpy(x), batch)


class Shifts(GPT2):
    """Positions that begin at 2, as in OPT, computed in NumPy."""

    reason = "ids, positions and logit_rows have no values while a step is recorded"

    def __call__(self, batch):
        return logits(self, self.wte(batch.ids) + self.wpe(batch.positions + np.int32(2)), batch)


class Branches(GPT2):
    reason = "ids, positions and logit_rows have no values while a step is recorded"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        return logits(self, x + x if (batch.positions > 3).all() else x, batch)


class HandlesExceptions(GPT2):
    """Catches any exception, and computes something else."""

    reason = "ids, positions and logit_rows have no values while a step is recorded"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        try:
            is_late = int(batch.positions[0]) > 3
        except Exception:
            is_late = True
        return logits(self, x + x if is_late else x, batch)


class Unfolds(GPT2):
    reason = "batch.row_starts is not known while a step is recorded"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        return logits(self, x + x if len(batch.row_starts) > 2 else x, batch)


class Keeps(GPT2):
    reason = "keeps an array after the step"
    kept: ClassVar = []

    def __call__(self, batch):
        x = self.wte(batch.ids)
        self.kept.append(x)
        return logits(self, x, batch)


class UsesAnArrayFromOutside(GPT2):
    reason = "computes with an array that was made outside the step"

    def __call__(self, batch):
        return logits(self, self.wte(batch.ids) + self.outside, batch)


class UsesOtherNumbers(GPT2):
    reason = "takes integers other than the batch's own"

    def __call__(self, batch):
        return logits(self, self.wte(batch.ids) + self.wpe(np.zeros(len(batch.ids), np.int32)), batch)


class MakesAnArray(GPT2):
    """Creates an array whose numbers differ between steps."""

    reason = "makes an array from values in host memory"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        x = x + self.ops.from_numpy(random(x.shape[0], CONFIG.n_embd, seed=next(self.seeds)))
        return logits(self, x, batch)


class LoadsAWeight(GPT2):
    reason = "loads a weight"

    def __call__(self, batch):
        x = self.wte(batch.ids)
        gain = self.ops.load_weight(ArrayTensor(np.ones(CONFIG.n_embd)), Role.VECTOR)
        return logits(self, self.ops.rms_norm(x, gain, 1e-5), batch)


class Samples(GPT2):
    reason = "samples a token"

    def __call__(self, batch):
        out = logits(self, self.wte(batch.ids), batch)
        self.ops.sample(out, [SamplingRow()] * out.shape[0])
        return out


class ReturnsAnEarlierArray(GPT2):
    reason = "the result is not that of the last operation"

    def __call__(self, batch):
        out = logits(self, self.wte(batch.ids), batch)
        out + out
        return out


class RunsAnotherModel(GPT2):
    reason = "another recorded step runs inside it"

    def __call__(self, batch):
        return logits(self, self.wte(batch.ids), batch) + self.other(batch_of(self.ops, 3))


class RecordsAnotherModel(GPT2):
    reason = "another step is recorded inside it"

    def __call__(self, batch):
        return logits(self, self.wte(batch.ids), batch) + next(self.seen_once)(batch_of(self.ops, 3))


def batch_of(ops, token):
    return Batch.of([Chunk([token], 0, [0])], ops.kv_cache(CONFIG.kv_shape, 1))


NOT_RECORDABLE = [
    Reads,
    ComputesInNumPy,
    Shifts,
    Branches,
    HandlesExceptions,
    Unfolds,
    Keeps,
    UsesAnArrayFromOutside,
    UsesOtherNumbers,
    MakesAnArray,
    LoadsAWeight,
    Samples,
    ReturnsAnEarlierArray,
    RunsAnotherModel,
    RecordsAnotherModel,
]


FOR_ONE_ROW = (UsesAnArrayFromOutside, RunsAnotherModel, RecordsAnotherModel)


@pytest.mark.parametrize("architecture", NOT_RECORDABLE)
def test_a_forward_that_cannot_be_recorded_runs_eagerly_and_is_logged_once(architecture, caplog):
    ops = CPUBackend(threads=2)
    model = bound(architecture(CONFIG), ops)
    model.outside = model.wte(np.array([5], np.int32))
    model.seeds = itertools.repeat(1)
    other = gpt2(ops)
    model.other = Calls(ops.capture(other))
    model.seen_once = itertools.cycle([ops.capture(other) for _ in range(20)])  # to be recorded on the next call
    for _ in range(20):
        next(model.seen_once)(batch_of(ops, 2))
    for _ in range(3):
        model.other(batch_of(ops, 2))
    forward = ops.capture(model)
    chunks = steps(1, 6) if architecture in FOR_ONE_ROW else [*steps(1, 6), *steps(2, 4)]
    with caplog.at_level(logging.INFO, "rushlight"):
        captured = run(forward, ops, chunks)
    for plain, out in zip(run(model, ops, chunks), captured, strict=True):
        assert np.array_equal(plain, out)
    assert forward._plans == {}
    messages = [record.getMessage() for record in caplog.records if architecture.__name__ in record.getMessage()]
    assert len(messages) == 1
    assert architecture.reason in messages[0]
    assert "runs eagerly" in messages[0]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    Keeps.kept.clear()


OPAQUE = {
    "add": lambda ids: ids + 2,
    "add to a number": lambda ids: 2 + ids,
    "add to a NumPy number": lambda ids: np.int32(2) + ids,
    "add to an array": lambda ids: np.ones(1, np.int32) + ids,
    "numpy.add": lambda ids: np.add(ids, 1),
    "subtract": lambda ids: ids - 1,
    "multiply": lambda ids: 3 * ids,
    "divide": lambda ids: ids // 2,
    "negate": lambda ids: -ids,
    "compare": lambda ids: ids > 3,
    "equal": lambda ids: ids == 3,
    "index": lambda ids: ids[0],
    "slice": lambda ids: ids[:1],
    "int": int,
    "float": float,
    "bool": bool,
    "iterate": list,
    "contain": lambda ids: 3 in ids,
    "numpy.asarray": np.asarray,
    "numpy.maximum": lambda ids: np.maximum(ids, 1),
    "numpy.where": lambda ids: np.where(ids, 1, 0),
    "max": lambda ids: ids.max(),
    "tolist": lambda ids: ids.tolist(),
}


@pytest.mark.parametrize("use", OPAQUE.values(), ids=OPAQUE)
@pytest.mark.parametrize("name", ["ids", "positions", "logit_rows"])
def test_computing_with_the_numbers_of_a_recorded_step_raises(name, use):
    ops = CPUBackend()

    def forward(batch):
        numbers = getattr(batch, name)
        assert (len(numbers), numbers.shape) == (1, (1,))
        assert not hasattr(numbers, "__array_interface__")
        use(numbers)

    with pytest.raises(NotRecordableError, match=r"no values while a step is recorded.*first_row.*angles or take"):
        ops.record(forward, batch_of(ops, 2))


def test_any_other_error_while_recording_propagates():
    ops = CPUBackend(threads=2)

    class Fails(GPT2):
        def __call__(self, batch):
            if not isinstance(batch, Batch):
                raise LookupError("only while recording")
            return super().__call__(batch)

    forward = ops.capture(bound(Fails(CONFIG), ops))
    forward(batch_of(ops, 1))
    with pytest.raises(LookupError, match="only while recording"):
        forward(batch_of(ops, 1))


class Modern:
    """A two-layer decoder with every operation that GPT-2 does not use."""

    n_head, n_kv_head, head_dim, vocab_size, context_length = 4, 2, 10, 70, 200
    kv_shape = KVShape(2, n_kv_head, head_dim)

    def __init__(self, ops):
        self.ops = ops
        seeds = itertools.count()

        def load(role, *shape):
            return ops.load_weight(ArrayTensor(0.4 * random(*shape, seed=next(seeds))), role)

        c, head_dim, qkv = 40, self.head_dim, (self.n_head + 2 * self.n_kv_head) * self.head_dim
        self.table, self.positions = load(Role.TABLE, 70, c), load(Role.TABLE, 202, c)
        self.norms = [load(Role.VECTOR, c) for _ in range(3)]
        self.head_norm = load(Role.VECTOR, head_dim)
        self.qkv = [load(Role.LINEAR, qkv, c) for _ in range(2)]
        self.out = [load(Role.LINEAR, c, self.n_head * head_dim) for _ in range(2)]
        self.gate_up, self.down = load(Role.LINEAR, 96, c), load(Role.LINEAR, c, 48)
        self.slopes = ops.load_weight(ArrayTensor(2.0 ** -np.arange(1, 5)), Role.CONSTANT)
        self.frequencies = ops.load_weight(ArrayTensor(10_000.0 ** (-np.arange(4) / 4)), Role.CONSTANT)

    def __call__(self, batch):
        ops, heads = self.ops, {"n_head": self.n_head, "scale": 0.3}
        x = ops.embedding(batch.ids, self.table) * 6.3 + ops.embedding(batch.positions, self.positions, 2)
        angles = ops.angles(batch.positions, self.frequencies, 1.1)

        q, k, v = ops.split(ops.linear(ops.rms_norm(x, self.norms[0], 1e-5, 1.0), self.qkv[0], None), [40, 20, 20])
        q, k = (ops.rms_norm(each, self.head_norm, 1e-5) for each in (q, k))
        q, k = ops.rotary(q, angles, self.n_head), ops.rotary(k, angles, self.n_kv_head)
        a = ops.attention(q, k, v, batch, layer=0, window=7, softcap=5.0, **heads)
        x = x + 0.5 * ops.linear(a, self.out[0], None)

        fused = ops.linear(ops.layer_norm(x, self.norms[1], None, 1e-5), self.qkv[1], None)
        q, k, v = ops.split(fused, [20, 10, 10], groups=2)
        q, k = (ops.rotary(each, angles, n, interleaved=True) for each, n in ((q, 4), (k, 2)))
        x = x + ops.linear(ops.attention(q, k, v, batch, layer=1, slopes=self.slopes, **heads), self.out[1], None)

        gate, up = ops.split(ops.linear(x, self.gate_up, None), 2)
        x = x + ops.linear(ops.activation(gate, "silu") * up, self.down, None)
        x = ops.rms_norm(ops.take(x, batch.logit_rows), self.norms[2], 1e-5)
        return ops.linear(x, ops.tie(self.table), None) * 0.1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n_sequences", "width"), [(1, 1), (5, 1), (2, 3)])
def test_every_operation_is_recorded(isa, requested, threads, n_sequences, width):
    ops = CPUBackend(requested, threads=threads, isa=isa)
    model = Modern(ops)
    calls = Calls(model)
    chunks = steps(n_sequences, 8, width=width)
    expected = run(model, ops, chunks, model.kv_shape)
    for plain, captured in zip(expected, run(ops.capture(calls), ops, chunks, model.kv_shape), strict=True):
        assert np.array_equal(plain, captured)
    assert calls.n == 2


@pytest.mark.parametrize("threads", [2, 3])
def test_a_recorded_step_divides_attention_by_the_positions_of_each_run(threads):
    """Recorded at short positions and run at long ones, where the attention of a row is divided by chains."""
    ops = CPUBackend(threads=threads)
    table = ops.load_weight(ArrayTensor(random(70, 100)), Role.TABLE)

    def model(batch):
        q, k, v = ops.split(ops.embedding(batch.ids, table), [60, 20, 20])
        for layer, window in ((0, None), (1, 600), (2, None)):
            q = ops.attention(q, k, v, batch, layer=layer, n_head=3, scale=0.3, window=window)
        return q

    shape = KVShape(3, 1, 20)
    ids = np.random.default_rng(0).integers(0, 70, 1600).tolist()
    blocks = list(range(25))
    recorded, calls = ops.capture(model), []
    caches = [ops.kv_cache(shape, 25) for _ in range(2)]
    for start, n in ((0, 1500), (20, 1), (21, 1), (511, 1), (512, 1), (1023, 1), (1400, 1), (30, 1), (1499, 1)):
        batches = [Batch.of([Chunk(ids[start : start + n], start, blocks)], cache) for cache in caches]
        plain, again = model(batches[0]), recorded(batches[1])
        assert np.array_equal(np.asarray(plain), np.asarray(again))
        calls.append(n)
    assert len(recorded._plans) == 1


def test_an_id_beyond_the_table_raises_the_same_error_as_without_a_plan():
    ops = CPUBackend()
    table = ops.load_weight(ArrayTensor(random(20, 40)), Role.TABLE)
    forward = ops.capture(lambda batch: ops.embedding(batch.ids, table, 2))
    for _ in range(3):
        forward(batch_of(ops, 17))
    assert len(forward._plans) == 1
    with pytest.raises(ValueError, match="id 18 is beyond the table's 18 rows from row 2"):
        forward(batch_of(ops, 18))


def test_recordings_of_several_models_are_kept_apart():
    ops = CPUBackend(threads=2)
    models = [bound(GPT2(CONFIG), ops, scale=scale) for scale in (0.2, 0.4)]
    calls = [Calls(model) for model in models]
    forwards = [ops.capture(each) for each in calls]
    chunks = steps(1, 6)
    expected = [run(model, ops, chunks) for model in models]
    caches = [ops.kv_cache(CONFIG.kv_shape, 16) for _ in models]
    for i, step in enumerate(chunks):
        for forward, cache, outputs in zip(forwards, caches, expected, strict=True):
            assert np.array_equal(np.array(forward(Batch.of(step, cache))), outputs[i])
    assert [each.n for each in calls] == [2, 2]


def test_a_change_of_one_model_leaves_the_recordings_of_another():
    ops = CPUBackend(threads=2)
    changed, other = gpt2(ops), gpt2(ops)
    forward = ops.capture(other)
    chunks = steps(1, 4)
    run(forward, ops, chunks)
    plans = dict(forward._plans)
    changed.h[1].mlp.act = Activation("relu")
    run(forward, ops, chunks)
    assert len(plans) == 1
    assert forward._plans == plans


def test_a_changed_module_is_recorded_again():
    ops = CPUBackend(threads=2)
    model = gpt2(ops)
    forward = ops.capture(model)
    chunks = steps(1, 4)
    before = run(forward, ops, chunks)
    model.h[1].mlp.act = Activation("relu")
    model.h[1].mlp.act.ops = ops
    after = run(forward, ops, chunks)
    assert all(np.array_equal(a, b) for a, b in zip(after, run(model, ops, chunks), strict=True))
    assert not np.array_equal(before[-1], after[-1])


def test_invalid_input_raises_the_same_error_as_without_a_plan():
    ops = CPUBackend(threads=2)
    forward = ops.capture(gpt2(ops))
    cache = ops.kv_cache(CONFIG.kv_shape, 4)
    run(forward, ops, steps(1, 3))
    with pytest.raises(ValueError, match="id 70 is beyond the table's 70 rows"):
        forward(Batch.of([Chunk([70], 0, [0])], cache))
    with pytest.raises(ValueError, match="block 4 is not in the cache"):
        forward(Batch.of([Chunk([1], 0, [4])], cache))
    with pytest.raises(ValueError, match="a different number of heads"):
        forward(Batch.of([Chunk([1], 0, [0])], ops.kv_cache(KVShape(3, 4, 10), 4)))


def test_errors_of_a_forward_propagate():
    def fails(batch):
        raise LookupError("of the forward")

    ops = CPUBackend()
    forward = ops.capture(fails)
    for _ in range(3):
        with pytest.raises(LookupError, match="of the forward"):
            run(forward, ops, steps(1, 1))


def test_threads_sharing_a_model_get_bit_identical_results():
    ops = CPUBackend(threads=2)
    model = gpt2(ops)
    forward = ops.capture(model)
    chunks = steps(2, 40)
    expected = run(model, ops, chunks)
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(forward, ops, chunks))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results:
        assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


def test_a_plan_gives_the_same_bits_while_its_threads_change():
    """A device that adapts tries different numbers of threads."""
    ops = CPUBackend()
    forward = ops.capture(gpt2(ops))
    chunks = steps(2, 30)
    expected = run(gpt2(CPUBackend(threads=1)), CPUBackend(threads=1), chunks)
    for _ in range(30):
        for plain, captured in zip(expected, run(forward, ops, chunks), strict=True):
            assert np.array_equal(plain, captured)
