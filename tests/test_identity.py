"""Results are bit-identical whatever the batch, the prefix cache, chunking and speculation."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

import rushlight
from rushlight import Request
from rushlight.generation import Context, Engine, LanguageModel, Sampler, SamplingParams

FIXTURES = sorted(path.parent for path in (Path(__file__).parent / "fixtures" / "gpt2").glob("*/config.json"))
SETTINGS = [{}, {"temperature": 0.9, "seed": 7}, {"temperature": 1.0, "top_p": 0.9, "seed": 8, "presence_penalty": 0.5}]


def solo(model, ids, n, settings):
    """Returns the tokens of the simplest loop: one sequence, one token at a time, no engine."""
    sampler = Sampler(SamplingParams(**settings), model.config.vocab_size, ids, model._inputs.allowed)
    context = Context(LanguageModel.of(model.module, model._backend, model.config), len(ids) + n)
    feed, text = ids, []
    for _ in range(n):
        token = context.sample(feed, sampler.row(context.length + len(feed)))
        sampler.accept_token(token)
        text.append(token)
        feed = [token]
    return text


def make_requests(model, n, seed=0, longest=150):
    """Returns n requests of different lengths; every third shares a prefix with another."""
    rng = random.Random(seed)
    longest = min(longest, model.context_length // 2)
    shared = [rng.randrange(model.config.vocab_size) for _ in range(longest)]
    made = []
    for i in range(n):
        own = [rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(1, longest))]
        prompt = [*shared[: longest - len(own)], *own] if i % 3 == 0 else own
        length = min(rng.randrange(2, 40), model.context_length - len(prompt))
        made.append(Request(prompt, (), {**SETTINGS[i % len(SETTINGS)], "max_tokens": length, "ignore_eos": True}))
    return made


def outputs(model, requests, **options):
    """Returns the output ids of the engine, in the order of the requests."""
    results = dict(model.generate_many(requests, **options))
    return [results[i].ids for i in range(len(requests))]


def expected(model, requests):
    return [solo(model, request.prompt, request.settings["max_tokens"], request.settings) for request in requests]


def fresh_engine(model, **options):
    """Gives the model a new engine with an empty cache."""
    engine = Engine(LanguageModel.of(model.module, model._backend, model.config), **options)
    model._default._engine = os.getpid(), engine
    return engine


@pytest.fixture(scope="module")
def model():
    return rushlight.load(dtype="f32", threads=1)


@pytest.fixture(scope="module")
def requests(model):
    return make_requests(model, 32)


@pytest.fixture(scope="module")
def expected_ids(model, requests):
    return expected(model, requests)


@pytest.mark.parametrize("n", [2, 5, 16, 32])
def test_in_batches_in_any_order_of_arrival(model, requests, expected_ids, n):
    order = random.Random(n).sample(range(32), n)
    fresh_engine(model)
    assert outputs(model, [requests[i] for i in order], max_active=n) == [expected_ids[i] for i in order]


@pytest.mark.parametrize("max_prefill_rows", [1, 7, 63, 64, 65, 300, 512])
def test_in_chunks_of_any_size(model, requests, expected_ids, max_prefill_rows):
    fresh_engine(model, max_prefill_rows=max_prefill_rows)
    assert outputs(model, requests[:6]) == expected_ids[:6]


def test_with_the_prefix_cache_or_without(model, requests, expected_ids):
    fresh_engine(model)
    assert outputs(model, requests[:9], max_active=1) == expected_ids[:9]
    again = dict(model.generate_many(requests[:9]))
    assert [again[i].ids for i in range(9)] == expected_ids[:9]
    assert sum(result.stats.cached_tokens > 0 for result in again.values()) > 4


def test_after_preemption(model, requests, expected_ids):
    engine = fresh_engine(model, kv_bytes=9 * model._backend.kv_block_bytes(model.config.kv_shape))
    assert engine.pool.n_blocks == 9
    assert outputs(model, requests) == expected_ids


def repetitive(model, n):
    """Returns prompts that lead to accepted and rejected draft tokens."""
    rng = random.Random(3)
    made = []
    for i in range(n):
        phrase = [rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(1, 9))]
        settings = {**SETTINGS[i % len(SETTINGS)], "max_tokens": 40, "ignore_eos": True, "repetition_penalty": 1.05}
        settings["temperature"] = settings.get("temperature", 0) / 10
        made.append(Request(phrase * 12, (), settings))
    return made


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_with_speculation_or_without(dtype):
    model = rushlight.load(dtype=dtype, threads=1)
    requests = repetitive(model, 8)
    expected_ids = expected(model, requests)
    for speculate in (None, True):
        runner = fresh_engine(model)._steps._runner
        run, n_rows = runner.on_device, []

        def count(chunks, run=run, n_rows=n_rows):
            n_rows.append(sum(len(chunk.ids) for chunk in chunks))
            return run(chunks)

        runner.on_device = count
        for max_active in (1, 3):
            drafted = [Request(r.prompt, (), {**r.settings, "speculate": speculate}) for r in requests]
            n_rows.clear()
            assert outputs(model, drafted, max_active=max_active) == expected_ids
            if speculate and max_active == 1:  # otherwise it depends on the time that steps take
                assert 0 < len(n_rows) < 8 * 40


@pytest.mark.parametrize(
    "dtype", ["f32", "int8", *(pytest.param(d, marks=pytest.mark.slow) for d in ("f16", "bf16", "int4"))]
)
def test_at_every_dtype_with_any_number_of_threads(dtype):
    found = []
    for threads in (1, 2, 3):
        model = rushlight.load(dtype=dtype, threads=threads)
        requests = make_requests(model, 5, seed=1)
        fresh_engine(model, max_prefill_rows=(512, 65, 7)[threads - 1])
        found += [outputs(model, requests), outputs(model, requests)]  # the second time from the prefix cache
        if threads == 1:
            expected_ids = expected(model, requests)
    assert found == [expected_ids] * 6


@pytest.mark.parametrize("dtype", ["f32", pytest.param("f64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_on_the_reference_backend(fixture, dtype):
    model = rushlight.load(fixture, device="reference", dtype=dtype)
    requests = make_requests(model, 5, longest=70)
    assert outputs(model, requests) == expected(model, requests)


def test_logprobs_are_identical(model, requests):
    fresh_engine(model)
    wanted = [
        Request(request.prompt, (), {**request.settings, "logprobs": 1, "prompt_logprobs": 1})
        for request in requests[:8]
    ]
    together = dict(model.generate_many(wanted))
    for i, request in enumerate(wanted):
        fresh_engine(model)
        one = model.generate(request.prompt, **request.settings)
        assert (together[i].logprobs, together[i].prompt_logprobs) == (one.logprobs, one.prompt_logprobs)
        logits = model.logits([*request.prompt, *one.ids]).astype(np.float64)
        assert [entry.id for entry in one.logprobs] == one.ids
        assert np.isfinite(logits).all()


def test_with_a_draft_model_or_without(model, requests, expected_ids):
    own_draft = rushlight.load(dtype="int4", threads=1)
    target = rushlight.load(dtype="f32", threads=1)
    target.use_draft(own_draft)
    steps = []
    engine = target._default.engine
    run = engine._steps._runner.on_device
    engine._steps._runner.on_device = lambda chunks: steps.append(len(chunks)) or run(chunks)
    drafted = [Request(r.prompt, (), {**r.settings, "speculate": True}) for r in requests[:9]]
    assert outputs(target, drafted, max_active=1) == expected_ids[:9]
    assert len(steps) < 0.6 * sum(map(len, expected_ids[:9]))
    assert outputs(target, drafted, max_active=9) == expected_ids[:9]
    assert outputs(target, requests[:9]) == expected_ids[:9]
    assert engine.pool.n_held == engine._steps.speculation.proposers[-1].pool.n_held == 0
