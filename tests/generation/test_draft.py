"""A draft model for the toy model: rounds, catching up, and KV blocks."""

from functools import cache

import numpy as np
import pytest
from toy import BLOCK_BYTES, V, draft_of, drafted, expected, ids_of, read_all, sequence, toy_draft, toy_engine

from rushlight.backends.batch import BLOCK_SIZE, PREFILL_ROWS
from rushlight.errors import MemoryLimitError


def prompt_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, V, n).tolist()


def rows(model):
    """Returns the number of rows of each sequence for each forward so far."""
    return [np.diff(batch.row_starts).tolist() for batch in model.batches]


def test_each_token_is_computed_once_and_rejected_ones_are_replaced():
    draft, model = toy_draft(error=0)
    engine, _ = toy_engine(draft=draft)
    proposer, one = draft_of(engine), sequence([3, 4])
    text = [3, 4, *expected([3, 4], 20)]
    assert proposer.observe(one) > 0.5
    assert proposer.propose({one: 3}) == {one: text[2:5]}
    assert [batch.ids.tolist() for batch in model.batches] == [[3, 4], text[2:3], text[3:4]]
    one.ids = wrong = [*text[:3], (text[3] + 1) % V]  # the first draft token was accepted, the second was not
    before = proposer.observe(one)
    draft_tokens = proposer.propose({one: 1})[one]
    assert draft_tokens == expected(wrong, 1)
    assert [batch.ids.tolist() for batch in model.batches[3:]] == [wrong[3:]]
    one.ids = [*wrong, *draft_tokens]
    assert proposer.observe(one) > before
    proposer.forget(one)
    assert proposer.pool.n_held == 0
    assert proposer._states == {}


def test_a_draft_round_is_one_forward_for_all_sequences():
    draft, model = toy_draft()
    engine, target = toy_engine(draft=draft)
    prompts = [prompt_of(10 + i, i) for i in range(6)]
    sequences = [drafted(prompt, max_tokens=90) for prompt in prompts]
    for one in sequences:
        engine.submit(one)
    while engine.step():
        pass
    for one, prompt in zip(sequences, prompts, strict=True):
        assert [token.id for token in one.unread] == expected(prompt, 90)[: len(one.unread)]
    assert rows(model)[0] == [len(prompt) + 1 for prompt in prompts]
    assert [1] * 6 in rows(model)
    assert max(len(each) for each in rows(model)) == 6
    assert len(target.batches) < 40
    for one, prompt in zip(sequences, prompts, strict=True):
        assert ids_of(read_all(engine, one)) == expected(prompt, 90)
    assert engine.pool.n_held == draft_of(engine).pool.n_held == 0


@cache
def text_without_draft(n, **settings):
    engine, _ = toy_engine()
    one = sequence(prompt_of(n), max_tokens=80, **settings)
    engine.submit(one)
    return ids_of(read_all(engine, one))


@pytest.mark.parametrize("error", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.8, "seed": 4}, {"temperature": 1.0, "presence_penalty": 0.5}]
)
def test_output_is_the_same_with_and_without_a_draft_model(error, settings):
    settings = {"seed": 3, **settings}
    draft, _ = toy_draft(error)
    engine, _ = toy_engine(draft=draft)
    for n in (1, BLOCK_SIZE - 2, 2 * BLOCK_SIZE):
        one = drafted(prompt_of(n), max_tokens=80, **settings)
        engine.submit(one)
        assert ids_of(read_all(engine, one)) == text_without_draft(n, **settings)


def test_the_draft_model_catches_up_with_a_long_prompt_over_several_steps():
    draft, model = toy_draft()
    engine, _ = toy_engine(n_blocks=200, draft=draft)
    prompts = [prompt_of(3 * BLOCK_SIZE + 9, i) for i in range(5)]
    sequences = [drafted(prompt, max_tokens=40) for prompt in prompts]
    for one in sequences:
        engine.submit(one)
    for one, prompt in zip(sequences, prompts, strict=True):
        assert ids_of(read_all(engine, one)) == expected(prompt, 40)
    assert max(sum(each) for each in rows(model)) <= PREFILL_ROWS
    assert sum(sum(each) for each in rows(model)) > 5 * len(prompts[0])


def test_a_shared_prefix_is_computed_once():
    draft, model = toy_draft()
    engine, _ = toy_engine(draft=draft)
    shared = prompt_of(2 * BLOCK_SIZE)
    for tail in (1, 2):
        one = drafted([*shared, tail], max_tokens=5)
        engine.submit(one)
        assert ids_of(read_all(engine, one)) == expected([*shared, tail], 5)
    assert [sum(each) for each in rows(model) if sum(each) > 4] == [len(shared) + 2]


def test_no_draft_tokens_beyond_the_context_of_the_draft_model():
    draft, model = toy_draft(context_length=30)
    engine, _ = toy_engine(draft=draft)
    one = drafted(prompt_of(20), max_tokens=60)
    engine.submit(one)
    assert ids_of(read_all(engine, one)) == expected(prompt_of(20), 60)
    assert max(batch.positions.max() for batch in model.batches) == 29


def test_without_enough_blocks_some_sequences_get_no_draft_tokens():
    draft, model = toy_draft()
    engine, _ = toy_engine(n_blocks=2 * 4, draft=draft)
    draft_of(engine).pool.parts[0].allocate()  # three are left, and both sequences need two
    prompts = [prompt_of(BLOCK_SIZE + 5, i) for i in range(2)]
    sequences = [drafted(prompt, max_tokens=50) for prompt in prompts]
    for one in sequences:
        engine.submit(one)
    for one, prompt in zip(sequences, prompts, strict=True):
        assert ids_of(read_all(engine, one)) == expected(prompt, 50)
    assert {len(each) for each in rows(model)} == {1}
    assert draft_of(engine).pool.n_held == 1


def test_sequences_outside_the_step_release_their_draft_blocks():
    draft, _ = toy_draft()
    engine, _ = toy_engine(n_blocks=2 * 3, draft=draft)
    stalled = drafted(prompt_of(BLOCK_SIZE + 1), max_tokens=100)
    engine.submit(stalled)
    while engine.step():  # until its consumer is too far behind
        pass
    assert draft_of(engine).pool.n_held == 2
    other = drafted(prompt_of(BLOCK_SIZE + 2, 1), max_tokens=60)
    engine.submit(other)
    assert ids_of(read_all(engine, other)) == expected(prompt_of(BLOCK_SIZE + 2, 1), 60)
    assert ids_of(read_all(engine, stalled)) == expected(prompt_of(BLOCK_SIZE + 1), 100)
    assert draft_of(engine).pool.n_held == 0


def test_cancellation_releases_draft_blocks_immediately():
    draft, _ = toy_draft()
    engine, _ = toy_engine(draft=draft)
    one = drafted(prompt_of(100), max_tokens=500)
    engine.submit(one)
    engine.step()
    engine.step()
    assert draft_of(engine).pool.n_held == 2
    engine.cancel(one)
    assert draft_of(engine).pool.n_held == 0


def test_draft_memory_counts_towards_kv_bytes():
    draft, _ = toy_draft()
    engine, _ = toy_engine(n_blocks=7, draft=draft)
    assert engine.pool.n_blocks == draft_of(engine).pool.n_blocks == 3
    with pytest.raises(MemoryLimitError, match="257 tokens") as error:
        engine.submit(drafted([1], max_tokens=4 * BLOCK_SIZE))
    assert (error.value.need_bytes, error.value.have_bytes) == (5 * 2 * BLOCK_BYTES, 3 * 2 * BLOCK_BYTES)


def test_a_draft_model_with_non_finite_logits_proposes_nothing():
    draft, _ = toy_draft()
    broken = draft._replace(forward=lambda batch: np.full((len(batch.logit_rows), V), np.nan))
    engine, _ = toy_engine(draft=broken)
    one = drafted([3, 4])
    engine.submit(one)
    assert ids_of(read_all(engine, one)) == expected([3, 4], 20)
