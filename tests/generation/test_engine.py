"""The engine over a toy model: batching, KV blocks, preemption, cancellation, errors and threads."""

import threading
import time

import numpy as np
import pytest
from toy import (
    BLOCK_BYTES,
    FixedRate,
    ToyModel,
    V,
    expected,
    ids_of,
    language_model,
    read_all,
    sequence,
    toy_engine,
    use_proposer,
)

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.errors import GenerationError, MemoryLimitError, QueueFullError
from rushlight.generation import Engine, Sampler, SamplingParams
from rushlight.generation.scheduler import MIXED_ROWS
from rushlight.generation.sequence import MAX_UNREAD


def submit(engine, *sequences):
    for one in sequences:
        engine.submit(one)
    return sequences


def prompt_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, V, n).tolist()


def test_each_token_depends_on_all_tokens_before_it():
    engine, model = toy_engine()
    [one] = submit(engine, sequence([3, 4]))
    assert ids_of(read_all(engine, one)) == expected([3, 4], 20)
    assert [len(batch.ids) for batch in model.batches] == [2] + [1] * 19  # each token is computed once
    assert engine.pool.n_held == 0


def test_a_sequence_spans_several_blocks():
    prompt = prompt_of(BLOCK_SIZE - 2)
    engine, _ = toy_engine()
    [one] = submit(engine, sequence(prompt, max_tokens=3 * BLOCK_SIZE))
    assert ids_of(read_all(engine, one)) == expected(prompt, 3 * BLOCK_SIZE)


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"max_tokens": 3}, [None, None, "length"]),
        ({"max_tokens": 9, "context_length": 5}, [None, None, "context"]),
        ({"max_tokens": 3, "context_length": 5}, [None, None, "length"]),
        ({"max_tokens": 0}, []),
    ],
)
def test_finish_reasons(options, reasons):
    engine, model = toy_engine()
    [one] = submit(engine, sequence([1, 2], **options))
    assert [token.finish_reason for token in read_all(engine, one)] == reasons
    assert len(model.batches) == len(reasons)
    assert one.done


def test_a_stop_token_ends_a_sequence():
    ids = expected([3, 4], 20)
    stop = ids[4]
    engine, _ = toy_engine()
    [one] = submit(engine, sequence([3, 4], stop_ids={stop}))
    tokens = read_all(engine, one)
    assert ids_of(tokens) == ids[: ids.index(stop) + 1]
    assert [token.finish_reason for token in tokens] == [None] * ids.index(stop) + ["stop"]


@pytest.mark.parametrize("max_sequences", [1, 3, 40])
def test_sequences_are_batched_whenever_they_arrive(max_sequences):
    engine, model = toy_engine(max_sequences=max_sequences)
    rng = np.random.default_rng(7)
    prompts = [prompt_of(int(n), seed) for seed, n in enumerate(rng.integers(1, 200, 32))]
    waiting = [sequence(prompt, max_tokens=int(n)) for prompt, n in zip(prompts, rng.integers(1, 50, 32), strict=True)]
    running = []
    while waiting or not all(one.done for one in running):
        for _ in range(int(rng.integers(0, 3))):
            if waiting:
                running += submit(engine, waiting.pop(0))
        engine.step()
    for one, prompt in zip(running, prompts, strict=True):
        ids = [token.id for token in one.unread]
        assert ids == expected(prompt, len(ids))
        assert len(ids) == one.end - one.n_prompt
    assert max(len(batch.row_starts) - 1 for batch in model.batches) <= max_sequences
    assert engine.pool.n_held == 0


def test_a_shared_prefix_is_computed_once():
    engine, model = toy_engine()
    shared = prompt_of(3 * BLOCK_SIZE)
    [first] = submit(engine, sequence([*shared, 1, 2], max_tokens=2))
    read_all(engine, first)
    before = model.n_rows
    [second] = submit(engine, sequence([*shared, 3], max_tokens=4))
    assert ids_of(read_all(engine, second)) == expected([*shared, 3], 4)
    assert (second.n_cached, model.n_rows - before) == (3 * BLOCK_SIZE, 1 + 3)


def test_a_fully_cached_prompt_still_computes_its_last_token():
    engine, _ = toy_engine()
    prompt = prompt_of(2 * BLOCK_SIZE)
    for n_cached in (0, BLOCK_SIZE):
        [one] = submit(engine, sequence(prompt, max_tokens=1))
        assert ids_of(read_all(engine, one)) == expected(prompt, 1)
        assert one.n_cached == n_cached


def test_outputs_are_cached_like_prompts():
    engine, _ = toy_engine()
    prompt = prompt_of(50)
    [one] = submit(engine, sequence(prompt, max_tokens=100))
    output = ids_of(read_all(engine, one))
    [next_turn] = submit(engine, sequence([*prompt, *output, 5], max_tokens=3))
    assert ids_of(read_all(engine, next_turn)) == expected([*prompt, *output, 5], 3)
    assert next_turn.n_cached == 2 * BLOCK_SIZE


def test_a_block_is_shared_only_after_the_same_prefix():
    engine, _ = toy_engine()
    middle = prompt_of(BLOCK_SIZE, 5)
    for seed in (1, 2):
        prompt = [*prompt_of(BLOCK_SIZE, seed), *middle, 9]
        [one] = submit(engine, sequence(prompt, max_tokens=5))
        assert ids_of(read_all(engine, one)) == expected(prompt, 5)
        assert one.n_cached == 0


def test_equal_prompts_submitted_together_are_computed_once():
    engine, model = toy_engine()
    prompt = prompt_of(4 * BLOCK_SIZE + 1)
    sequences = submit(engine, *(sequence(prompt, max_tokens=2) for _ in range(4)))
    for one in sequences:
        assert ids_of(read_all(engine, one)) == expected(prompt, 2)
    assert [one.n_cached for one in sequences] == [0] + [4 * BLOCK_SIZE] * 3
    assert model.n_rows == len(prompt) + 3 + 4


def test_the_least_recently_used_blocks_are_evicted():
    engine, _ = toy_engine(n_blocks=4)
    a, b, c = (prompt_of(BLOCK_SIZE + 1, seed) for seed in range(3))
    found = []
    for prompt in (a, b, a, c, b, a):  # the first block of each stays; there is room for a third, not for a fourth
        [one] = submit(engine, sequence([*prompt, *prompt_of(BLOCK_SIZE)], max_tokens=1))
        assert ids_of(read_all(engine, one)) == expected([*prompt, *prompt_of(BLOCK_SIZE)], 1)
        found.append(one.n_cached // BLOCK_SIZE)
    assert found == [0, 0, 1, 0, 0, 0]


def test_the_youngest_sequence_is_preempted_and_its_output_is_unchanged():
    engine, model = toy_engine(n_blocks=6)
    prompts = [prompt_of(BLOCK_SIZE + 30, seed) for seed in range(3)]
    sequences = submit(engine, *(sequence(prompt, max_tokens=150) for prompt in prompts))
    finished = []
    while len(finished) < 3:
        engine.step()
        for one in sequences:
            while one.unread:
                one.got = [*getattr(one, "got", []), one.read().id]
            if one.done and one not in finished:
                finished.append(one)
    assert [one.got for one in sequences] == [expected(prompt, 150) for prompt in prompts]
    assert finished == list(sequences)
    assert model.n_rows > sum(len(one.ids) for one in sequences)  # preempted sequences were recomputed
    assert engine.pool.n_held == 0


def test_a_long_prompt_does_not_stall_decoding():
    engine, model = toy_engine()
    [short] = submit(engine, sequence([1], max_tokens=30))
    engine.step()
    [long] = submit(engine, sequence(prompt_of(600), max_tokens=1))
    n_steps = 0
    while not long.unread:
        before = len(short.ids)
        engine.step()
        assert len(short.ids) == before + 1
        assert len(model.batches[-1].ids) <= 1 + MIXED_ROWS
        n_steps += 1
    assert n_steps == -(-600 // MIXED_ROWS)


def test_an_unread_sequence_does_not_delay_others():
    engine, _ = toy_engine(n_blocks=4, max_sequences=1)
    [stalled] = submit(engine, sequence([1], max_tokens=200))
    while engine.step():
        pass
    assert len(stalled.unread) == MAX_UNREAD
    [other] = submit(engine, sequence(prompt_of(190), max_tokens=50))
    assert ids_of(read_all(engine, other)) == expected(prompt_of(190), 50)
    assert ids_of(read_all(engine, stalled)) == expected([1], 200)


def test_cancellation_releases_blocks_immediately():
    engine, _ = toy_engine()
    one, other = submit(engine, sequence(prompt_of(100), max_tokens=50), sequence([2], max_tokens=10))
    engine.step()
    assert engine.pool.n_held == 3
    engine.cancel(one)
    assert engine.pool.n_held == 1
    engine.cancel(one)  # it may already have finished
    assert ids_of(read_all(engine, other)) == expected([2], 10)
    assert engine.pool.n_held == 0


def test_a_sequence_cancelled_during_a_step_is_removed_after_it():
    engine, model = toy_engine()
    [one] = submit(engine, sequence([1, 2]))
    attention = model.ops.attention

    def cancel_in_the_middle(*args, **kwargs):
        engine.cancel(one)
        return attention(*args, **kwargs)

    model.ops.attention = cancel_in_the_middle
    engine.step()
    assert (engine.pool.n_held, list(one.unread), one.done) == (0, [], True)


def test_a_full_queue_refuses_or_waits():
    engine, _ = toy_engine(max_waiting=2)
    submit(engine, sequence([1]), sequence([2]))
    with pytest.raises(QueueFullError, match="at most 2"):
        engine.submit(sequence([3]))
    third = sequence([3])
    engine.submit(third, wait=True)
    assert ids_of(read_all(engine, third)) == expected([3], 20)


def test_threads_that_wait_for_a_full_queue_all_get_through(monkeypatch):
    is_full = Engine.full.fget
    engine, _ = toy_engine(max_waiting=1, max_sequences=2)
    outputs = {}

    def ask(thread):
        for i in range(30):
            one = sequence([thread + 1, i % V], max_tokens=3)
            engine.submit(one, wait=True)
            outputs[thread, i] = ids_of(read_all(engine, one))

    monkeypatch.setattr(Engine, "full", property(lambda engine: bool(time.sleep(0)) or is_full(engine)))
    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {(thread, i): expected([thread + 1, i % V], 3) for thread in range(6) for i in range(30)}


def test_a_sequence_that_cannot_fit_is_refused_with_both_sizes():
    engine, _ = toy_engine(n_blocks=2)
    with pytest.raises(MemoryLimitError, match=r"129 tokens .*raise kv_bytes") as error:
        engine.submit(sequence([1], max_tokens=128))
    assert (error.value.need_bytes, error.value.have_bytes) == (3 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    with pytest.raises(MemoryLimitError, match="exceeds the available memory"):
        toy_engine(n_blocks=10**14)


def test_a_failing_sequence_does_not_affect_others():
    engine, _ = toy_engine()
    submitted = submit(engine, sequence([1]), sequence([2, 3]), sequence([3]))
    submitted[1].sampler = Sampler(SamplingParams(), V, allowed=np.zeros(V, np.bool_))
    assert ids_of(read_all(engine, submitted[0])) == expected([1], 20)
    with pytest.raises(GenerationError, match="no valid token at position 2"):
        read_all(engine, submitted[1])
    assert ids_of(read_all(engine, submitted[2])) == expected([3], 20)
    assert engine.pool.n_held == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_prompt_logprobs_of_non_finite_logits_are_an_error(value):
    engine, _ = toy_engine()
    run = engine._steps._runner._forward

    def forward(batch):
        logits = run(batch)
        logits[batch.ids[batch.logit_rows] == 9] = value
        return logits

    engine._steps._runner._forward = forward
    sound, broken = submit(
        engine, sequence([1, 2, 3], prompt_logprobs=0), sequence([1, 9, 3], prompt_logprobs=0, max_tokens=0)
    )
    with pytest.raises(GenerationError, match="logits for position 2 are not finite"):
        read_all(engine, broken)
    assert ids_of(read_all(engine, sound))[:1] == expected([1, 2, 3], 1)
    assert len(sound.prompt_logprobs) == 2
    assert engine.pool.n_held == 0


class Fixed(FixedRate):
    """Proposes the continuation of a given output."""

    def __init__(self, ids):
        super().__init__()
        self.ids = ids

    def propose(self, limits):
        return {one: self.ids[len(one.ids) :][:n] for one, n in limits.items()}


@pytest.mark.parametrize(
    ("settings", "n_calls"), [({}, 1), ({"logprobs": 2}, 1), ({"presence_penalty": 1e-9}, 5), ({"top_k": 3}, 1)]
)
def test_a_step_is_sampled_in_one_call(settings, n_calls):
    """A stateful sampler with draft tokens is the exception: a call for each accepted draft token, and one more."""
    engine, model = toy_engine()
    calls = []
    device_sample = model.ops.sample

    def count(logits, rows):
        calls.append(len(rows))
        return device_sample(logits, rows)

    model.ops.sample = count
    right = expected([3, 4], 20)
    wrong = [*right[:5], right[5] ^ 1, *right[6:]]
    other = sequence([5], max_tokens=9)
    use_proposer(engine, Fixed([3, 4, *wrong]))
    drafting = sequence([3, 4], speculate=True, **settings)
    submit(engine, drafting, other)
    while engine.step():
        pass
    assert [token.id for token in drafting.unread] == right
    assert [token.id for token in other.unread] == expected([5], 9)
    # The step of the prompts, then one with four accepted draft tokens and a rejected fifth.
    n_rows = 1 + min(15, 20 - 2)
    assert calls[0] == 2
    assert calls[1 : 1 + n_calls] == ([n_rows + 1] if n_calls == 1 else [2, 1, 1, 1, 1])
    if settings.get("logprobs"):
        assert all(token.logprob.id == token.logprob.top[0][0] == token.id for token in drafting.unread)


def test_a_chunked_prompt_is_sampled_once():
    engine, model = toy_engine(max_prefill_rows=50)
    calls = []
    device_sample = model.ops.sample
    model.ops.sample = lambda logits, rows: calls.append(len(rows)) or device_sample(logits, rows)
    [one] = submit(engine, sequence(prompt_of(170), max_tokens=2, prompt_logprobs=0))
    assert ids_of(read_all(engine, one)) == expected(prompt_of(170), 2)
    assert len(model.batches) == 5
    assert calls == [1, 1]
    assert len(one.prompt_logprobs) == 169


@pytest.mark.parametrize("error", [MemoryError("no more"), LookupError("odd"), KeyboardInterrupt()])
def test_a_failing_step_ends_only_its_own_sequences(error):
    engine, model = toy_engine(max_sequences=1)
    ran, waits = submit(engine, sequence([1]), sequence([2]))
    attention = model.ops.attention

    def fail(*args, **kwargs):
        model.ops.attention = attention
        raise error

    model.ops.attention = fail
    with pytest.raises((MemoryLimitError, LookupError, GenerationError, KeyboardInterrupt)):
        read_all(engine, ran)
    assert ran.done
    with pytest.raises((MemoryLimitError, LookupError, GenerationError)):
        ran.read()
    assert ids_of(read_all(engine, waits)) == expected([2], 20)
    assert engine.pool.n_held == 0


def test_threads_share_the_steps():
    engine, _ = toy_engine()
    prompts = [prompt_of(10, seed) for seed in range(8)]
    results = {}

    def run(i):
        one = sequence(prompts[i], max_tokens=40)
        engine.submit(one)
        results[i] = ids_of(read_all(engine, one))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: expected(prompt, 40) for i, prompt in enumerate(prompts)}
    assert engine.pool.n_held == 0


def test_stats_count_sequences_blocks_and_tokens():
    engine, model = toy_engine(n_blocks=8, max_sequences=1)
    assert engine.stats() == (0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    assert engine.stats().acceptance_rate is None
    prompt = prompt_of(2 * BLOCK_SIZE + 5)
    first, second = submit(engine, sequence(prompt, max_tokens=4), sequence(prompt, max_tokens=3))
    engine.step()
    stats = engine.stats()
    assert (stats.n_waiting, stats.n_running) == (1, 1)
    assert (stats.n_blocks_held, stats.n_blocks_cached, stats.n_blocks_free) == (3, 0, 5)
    assert (stats.n_computed_tokens, stats.n_sampled_tokens) == (len(prompt), 1)
    for one in (first, second):
        read_all(engine, one)
    stats = engine.stats()
    assert (stats.n_waiting, stats.n_running) == (0, 0)
    assert (stats.n_blocks_held, stats.n_blocks_cached, stats.n_blocks_free) == (0, 2, 6)
    assert stats.n_cached_tokens == 2 * BLOCK_SIZE
    assert stats.n_computed_tokens == model.n_rows == len(prompt) + 3 + 5 + 2
    assert stats.n_sampled_tokens == 4 + 3
    assert stats.n_steps == len(model.batches)


def test_stats_count_draft_tokens():
    engine, _ = toy_engine()
    right = [3, 4, *expected([3, 4], 20)]
    use_proposer(engine, Fixed([*right[:7], (right[7] + 1) % V, *right[8:]]))  # the fifth draft token is rejected
    [one] = submit(engine, sequence([3, 4], speculate=True))
    engine.step()
    engine.step()
    stats = engine.stats()
    assert (stats.n_drafted, stats.n_accepted) == (15, 4)
    assert stats.acceptance_rate == 4 / 15
    assert stats.n_sampled_tokens == 1 + 5
    assert stats.n_computed_tokens == 2 + 5
    assert ids_of(read_all(engine, one)) == right[2:]


def test_the_prefix_cache_keeps_a_share_of_the_available_memory():
    """A quarter, and at most four contexts; with `kv_bytes`, four or as much as there is."""

    def max_evictable(n_blocks, **options):
        _, model = toy_engine(n_blocks=n_blocks, context_length=4 * BLOCK_SIZE)
        model.ops.available_bytes = lambda: 2 * n_blocks * BLOCK_BYTES
        [part] = Engine(language_model(model, 4 * BLOCK_SIZE), **options).pool.parts
        return part.max_evictable

    assert max_evictable(8) == 2
    assert max_evictable(40) == 10
    assert max_evictable(400) == 16
    assert max_evictable(8, kv_bytes=8 * BLOCK_BYTES) == 8


def test_a_step_scores_fewer_rows_of_a_large_vocabulary():
    model = language_model(ToyModel(None))
    assert model.max_scored_rows == 64
    assert model._replace(vocab_size=262_144).max_scored_rows == 32
    assert model._replace(vocab_size=10**9).max_scored_rows == 1
