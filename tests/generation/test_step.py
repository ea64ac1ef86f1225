"""A single step, without engine, queue or threads."""

import numpy as np
import pytest
from toy import KV_SHAPE, FixedRate, ToyModel, V, expected, language_model, sequence

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS
from rushlight.errors import GenerationError
from rushlight.generation.block_pool import BlockPool
from rushlight.generation.consistency import Consistency
from rushlight.generation.step import StepRunner

N_BLOCKS = 8


class Fixed(FixedRate):
    """Proposes the same tokens for every sequence."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def propose(self, limits):
        return {one: self.tokens[:n] for one, n in limits.items()}


def step_runner(proposers=(), consistency=None):
    pool = BlockPool(KV_SHAPE.groups, [N_BLOCKS], [N_BLOCKS], max_rows=PREFILL_ROWS)
    model = ToyModel(open_backend("reference", "f64"))
    return StepRunner(language_model(model), pool, proposers, consistency), pool, model


def admitted(pool, prompt, **settings):
    """A sequence with blocks for all its tokens."""
    one = sequence(prompt, **settings)
    one.blocks = pool.start(pool.match_prefix([]))
    assert pool.grow(one.blocks, one.end)
    return one


def output(one):
    return one.ids[one.n_prompt :]


def test_a_chunked_prompt_is_sampled_after_its_last_chunk():
    steps, pool, model = step_runner()
    one = admitted(pool, list(range(1, 11)))
    assert steps.run({one: 4}) == []
    assert (one.n_computed, output(one)) == (4, [])
    assert steps.run({one: 6}) == []
    assert (one.n_computed, output(one)) == (10, expected(range(1, 11), 1))
    assert [len(batch.ids) for batch in model.batches] == [4, 6]


def test_finished_sequences_are_returned():
    steps, pool, _ = step_runner()
    short, long = admitted(pool, [1], max_tokens=1), admitted(pool, [2], max_tokens=2)
    assert steps.run({short: 1, long: 1}) == [short]
    assert steps.run({long: 1}) == [long]
    assert output(long) == expected([2], 2)


def test_draft_tokens_are_verified_up_to_the_first_that_is_rejected():
    right = expected([3, 4], 9)
    steps, pool, model = step_runner([Fixed([right[1], right[2], (right[3] + 1) % V, right[4]])])
    one = admitted(pool, [3, 4], speculate=True)
    steps.run({one: 2})
    steps.run({one: 1})
    assert [len(batch.ids) for batch in model.batches] == [2, 1 + 4]
    assert output(one) == right[:4]
    assert one.n_computed == len(one.ids) - 1
    assert (steps.n_drafted, steps.n_accepted, steps.n_sampled, steps.n_computed) == (4, 2, 1 + 3, 2 + 3)


def test_only_decode_steps_carry_draft_tokens():
    steps, pool, model = step_runner([Fixed([1])])
    one, other = admitted(pool, [3, 4], speculate=True), admitted(pool, [5])
    steps.run({one: 2})
    steps.run({one: 1, other: 1})
    assert [len(batch.ids) for batch in model.batches] == [2, 2]


def test_full_blocks_are_cached():
    steps, pool, _ = step_runner()
    prompt = [i % V for i in range(BLOCK_SIZE + 3)]
    one = admitted(pool, prompt)
    steps.run({one: len(prompt)})
    assert one.blocks.n_cached == 1
    assert pool.match_prefix(prompt).blocks == ([one.blocks.tables[0][0]],)


def test_a_sequence_that_cannot_be_sampled_ends_with_its_error_and_the_others_continue():
    steps, pool, _ = step_runner()
    one, other = admitted(pool, [1]), admitted(pool, [2])
    one.sampler._allowed = one.sampler._allowed_first = np.zeros(V, np.bool_)
    assert steps.run({one: 1, other: 1}) == [one]
    assert isinstance(one.error, GenerationError)
    assert output(other) == expected([2], 1)


def test_prompt_logprobs_are_scored_and_end_a_sequence_without_output():
    steps, pool, _ = step_runner()
    one = admitted(pool, [1, 2, 3], max_tokens=0, prompt_logprobs=0)
    assert steps.run({one: 3}) == [one]
    assert [entry.id for entry in one.prompt_logprobs] == [2, 3]


def test_an_interrupt_in_the_bookkeeping_leaves_inconsistent_state_but_not_one_in_the_forward():
    consistency = Consistency()
    steps, pool, model = step_runner(consistency=consistency)
    one = admitted(pool, [1])
    attention, sample = model.ops.attention, model.ops.sample

    def interrupt(*_, **__):
        assert consistency.holds == (model.ops.sample == sample)
        raise KeyboardInterrupt

    model.ops.attention = interrupt
    with pytest.raises(KeyboardInterrupt):
        steps.run({one: 1})
    assert consistency.holds
    model.ops.attention, model.ops.sample = attention, interrupt
    with pytest.raises(KeyboardInterrupt):
        steps.run({one: 1})
    assert not consistency.holds
