"""A recording belongs to one module tree: changing another tree, loading, tracing and patching leave it valid."""

import numpy as np
import pytest

import rushlight
from rushlight.backends.batch import Batch, Chunk
from rushlight.nn import Activation, tapped

PROMPT = "Once upon a time"


class Calls:
    """A captured forward that counts the calls of its model; a step replayed from a plan does not call it."""

    def __init__(self, model):
        self.module, self.ops, self.n = model.module, model.module.ops, 0
        self.cache = self.ops.kv_cache(model.config.kv_shape, 1)
        self.forward = self.ops.capture(self)
        self.position = 0

    @property
    def version(self):
        return self.module.version

    def __call__(self, batch):
        self.n += 1
        return self.module(batch)

    def steps(self, n):
        """Returns how many of n decode steps called the model."""
        before = self.n
        for _ in range(n):
            self.forward(Batch.of([Chunk([7], self.position, [0])], self.cache))
            self.position += 1
        return self.n - before


@pytest.fixture
def first():
    return rushlight.load(device="cpu")


@pytest.fixture
def second():
    return rushlight.load(device="cpu")


def test_a_step_is_recorded_and_then_repeated(first):
    calls = Calls(first)
    assert calls.steps(5) == 2
    assert calls.steps(5) == 0


def test_loading_another_model_leaves_recordings_valid(first):
    calls = Calls(first)
    calls.steps(3)
    rushlight.load(device="cpu")
    assert calls.steps(3) == 0


def test_tracing_and_patching_leave_the_recordings_of_all_models_valid(first, second):
    calls = Calls(first), Calls(second)
    for each in calls:
        each.steps(3)
    with first.trace() as trace:
        first.logits(PROMPT)
        assert [each.steps(1) for each in calls] == [0, 0]
    assert len(trace) > 0
    with first.patch({"h.0.attn": lambda x: 0 * x}):
        first.generate(PROMPT, max_tokens=3)
    assert [each.steps(1) for each in calls] == [0, 0]


def test_only_the_changed_model_is_recorded_again(first, second):
    calls = Calls(first), Calls(second)
    for each in calls:
        each.steps(3)
    first.module.ln_f.weight = second.module.ln_f.weight
    assert [each.steps(5) for each in calls] == [2, 0]


def test_a_change_in_an_inserted_module_increments_the_version(first):
    module = first.module
    activation = Activation("relu")
    module.h[1].mlp.act = activation
    before = module.version
    activation.ops = module.ops
    assert module.version > before


def test_a_change_in_a_shared_module_increments_the_version_of_both_trees(first, second):
    second.module.lm_head = first.module.lm_head
    before = first.module.version, second.module.version
    first.module.lm_head.bias = None
    assert first.module.version > before[0]
    assert second.module.version > before[1]


def test_a_deleted_attribute_counts(first):
    before = first.module.version
    del first.module.h[0].attn.scale
    assert first.module.version > before


def test_a_change_increments_the_version_of_a_subtree(first):
    before = first.module.h[0].version
    first.module.h[0].attn.scale = 2.0
    assert first.module.h[0].version > before


def test_changing_a_tapped_tree_leaves_the_original_version(first):
    twin = tapped(first.module, lambda path, output: output)
    before = first.module.version
    twin.h[0].attn.scale = 2.0
    assert first.module.version == before


def test_a_changed_model_generates_like_a_fresh_model_with_the_same_change(first):
    before = first.generate(PROMPT, max_tokens=8, ignore_eos=True).ids
    for block in first.module.h:
        block.attn.scale = 0.0
    after = first.generate(PROMPT, max_tokens=8, ignore_eos=True).ids
    fresh = rushlight.load(device="cpu")
    for block in fresh.module.h:
        block.attn.scale = 0.0
    assert before != after == fresh.generate(PROMPT, max_tokens=8, ignore_eos=True).ids
    assert np.array_equal(first.logits(PROMPT), fresh.logits(PROMPT))


def test_keys_and_values_from_before_a_change_are_not_used(first):
    prompt = [5, 6, 7, 8] * 40
    fresh = rushlight.load(device="cpu")
    first.generate(prompt, max_tokens=1)
    assert first.engine_stats().n_blocks_cached > 0
    for model in (first, fresh):
        model.module.h[0].attn.scale = 0.0
    changed, right = (model.generate(prompt, max_tokens=4, logprobs=3) for model in (first, fresh))
    assert changed.logprobs == right.logprobs
    assert changed.stats.cached_tokens == 0


def test_a_running_sequence_continues_with_the_changed_model(first):
    fresh = rushlight.load(device="cpu")
    stream = first.stream(PROMPT, max_tokens=20, ignore_eos=True, logprobs=1)
    next(stream)
    before = list(stream.result.ids)
    for model in (first, fresh):
        model.module.h[0].attn.scale = 0.0
    list(stream)
    right = fresh.generate(
        [*stream.result.prompt_ids, *before], max_tokens=20 - len(before), ignore_eos=True, logprobs=1
    )
    assert stream.result.ids == before + right.ids
    assert stream.result.logprobs[len(before) :] == right.logprobs
