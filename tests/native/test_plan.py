"""Captured forwards: recorded once for a shape and repeated, with nothing to be seen of it but the time."""

import itertools
import threading
from typing import ClassVar

import numpy as np
import pytest
from native_helpers import ArrayTensor, random

from rushlight.backends.batch import Batch, Chunk, KVShape
from rushlight.backends.cpu import MOST_PLANS, MOST_RECORDED_ROWS, CPUBackend
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
    """Chunks of n steps of sequences whose lengths and blocks differ, `width` tokens of each a step."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (n, n_sequences, width)).tolist()
    return [
        [Chunk(tokens, (60 + 3 * s if s else 0) + width * step, [2 * s + 1, 2 * s]) for s, tokens in enumerate(row)]
        for step, row in enumerate(ids)
    ]


def run(forward, ops, chunks):
    cache = ops.kv_cache(CONFIG.kv_shape, 16)
    return [np.array(forward(Batch.of(step, cache))) for step in chunks]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("n_sequences", "width"), [(1, 1), (5, 1), (2, 3)])
def test_a_plan_gives_the_same_bits(isa, weights, threads, n_sequences, width):
    ops = CPUBackend(weights, threads=threads, isa=isa)
    model = gpt2(ops)
    calls = Calls(model)
    chunks = steps(n_sequences, 8, width=width)
    for plain, captured in zip(run(model, ops, chunks), run(ops.capture(calls), ops, chunks), strict=True):
        assert np.array_equal(plain, captured)
    assert calls.n == 2


def test_a_plan_is_for_any_split_of_its_rows_into_sequences():
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


def test_a_cache_in_another_format_is_written_in_its_own():
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


def test_results_stay_when_the_plan_is_run_again():
    ops = CPUBackend(threads=2)
    forward = ops.capture(gpt2(ops))
    cache = ops.kv_cache(CONFIG.kv_shape, 2)
    results = [forward(Batch.of([Chunk([i], i, [0, 1])], cache)) for i in range(5)]
    before = [np.array(result) for result in results]
    forward(Batch.of([Chunk([9], 5, [0, 1])], cache))
    assert all(np.array_equal(result, old) for result, old in zip(results, before, strict=True))


def test_steps_of_many_rows_are_not_planned():
    ops = CPUBackend()
    calls = Calls(gpt2(ops))
    run(ops.capture(calls), ops, [[Chunk([1] * (MOST_RECORDED_ROWS + 1), 0, [0, 1])]] * 4)
    assert calls.n == 4


def test_few_plans_are_kept():
    ops = CPUBackend()
    forward = ops.capture(gpt2(ops))
    for n in range(1, MOST_PLANS + 5):
        run(forward, ops, [[Chunk([1] * n, 0, [0])]] * 3)
    assert len(forward._plans) == MOST_PLANS


class Reads(GPT2):
    def __call__(self, batch):
        x = self.wte(batch.ids)
        np.asarray(x).sum()
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Adds(GPT2):
    """Arithmetic of its own."""

    def __call__(self, batch):
        x = self.wte(batch.ids)
        x = self.ops._native.array(np.ascontiguousarray(np.asarray(x)) * np.float32(2))
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Shifts(GPT2):
    """Positions counted from 2, as in OPT."""

    def __call__(self, batch):
        x = self.wte(batch.ids) + self.wpe(batch.positions + np.int32(2))
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Branches(GPT2):
    def __call__(self, batch):
        x = self.wte(batch.ids)
        if (batch.positions > 3).all():
            x = x + x
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Keeps(GPT2):
    kept: ClassVar = []

    def __call__(self, batch):
        x = self.wte(batch.ids)
        self.kept.append(x)
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Brings(GPT2):
    """An array from outside the step."""

    def __call__(self, batch):
        x = self.wte(batch.ids) + self.outside
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


class Draws(GPT2):
    """Numbers that are others each time."""

    def __call__(self, batch):
        x = self.wte(batch.ids)
        x = x + self.ops._native.array(random(x.shape[0], CONFIG.n_embd, seed=next(self.seeds)))
        return self.lm_head(self.ln_f(self.ops.take(x, batch.logit_rows)))


@pytest.mark.parametrize("architecture", [Reads, Adds, Shifts, Branches, Keeps, Brings, Draws])
def test_what_cannot_be_repeated_is_called_each_time(architecture):
    ops = CPUBackend(threads=2)
    model = bound(architecture(CONFIG), ops)
    model.outside = model.wte(np.array([5], np.int32))
    model.seeds = itertools.repeat(1)
    forward = ops.capture(model)
    chunks = steps(1, 6)
    for plain, captured in zip(run(model, ops, chunks), run(forward, ops, chunks), strict=True):
        assert np.array_equal(plain, captured)
    assert forward._plans == {}
    assert not forward._recordable
    Keeps.kept.clear()


def test_a_module_that_is_changed_is_asked_again():
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


def test_wrong_input_is_the_same_error():
    ops = CPUBackend(threads=2)
    forward = ops.capture(gpt2(ops))
    cache = ops.kv_cache(CONFIG.kv_shape, 4)
    run(forward, ops, steps(1, 3))
    with pytest.raises(ValueError, match="id 70 is beyond the table's 70 rows"):
        forward(Batch.of([Chunk([70], 0, [0])], cache))
    with pytest.raises(ValueError, match="block 4 is not in the cache"):
        forward(Batch.of([Chunk([1], 0, [4])], cache))
    with pytest.raises(ValueError, match="another number of heads"):
        forward(Batch.of([Chunk([1], 0, [0])], ops.kv_cache(KVShape(3, 4, 10), 4)))


def test_a_forward_that_fails_says_so():
    def fails(batch):
        raise LookupError("what it says")

    ops = CPUBackend()
    forward = ops.capture(fails)
    for _ in range(3):
        with pytest.raises(LookupError, match="what it says"):
            run(forward, ops, steps(1, 1))


def test_threads_that_run_one_model_get_the_same_bits():
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
    """A device that adapts tries one thread and two."""
    ops = CPUBackend()
    forward = ops.capture(gpt2(ops))
    chunks = steps(2, 30)
    expected = run(gpt2(CPUBackend(threads=1)), CPUBackend(threads=1), chunks)
    for _ in range(30):
        for plain, captured in zip(expected, run(forward, ops, chunks), strict=True):
            assert np.array_equal(plain, captured)
