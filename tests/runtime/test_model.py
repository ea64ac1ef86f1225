"""`Model` with the embedded model: generation, streams, batches, errors."""

import asyncio
import gc
import os
import threading
import time
import warnings

import numpy as np
import pytest

import rushlight
from rushlight import Request
from rushlight.errors import ContextLengthError, RequestError, TokenizerError
from rushlight.generation.runner import ModelRunner

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


@pytest.fixture(scope="module")
def ids_only():
    """The same model without a tokenizer."""
    model = rushlight.load()
    model.tokenizer = None
    return model


def test_repr_and_sizes(model):
    assert repr(model) == "<Model tales: 3,554,304 parameters, cpu, f16>"
    assert (model.context_length, model.config.n_layer, model.eos_ids) == (512, 6, (0,))


def test_greedy_decoding_takes_the_most_likely_token(model):
    result = model.generate(PROMPT, max_tokens=12)
    ids = model.tokenizer.encode(PROMPT)
    for token in result.ids:
        assert int(model.logits(ids)[-1].argmax()) == token
        ids.append(token)
    assert result.text == model.tokenizer.decode(result.ids) == str(result)
    assert (result.finish_reason, result.seed, result.prompt_ids) == ("length", None, ids[:-12])
    assert (result.stats.prompt_tokens, result.stats.generated_tokens) == (len(ids) - 12, 12)
    assert result.stats.prefill_tok_s > 0 < result.stats.decode_tok_s


def test_streamed_pieces_join_to_the_text(model):
    stream = model.stream(PROMPT, max_tokens=30)
    assert stream.result.finish_reason is None
    pieces = list(stream)
    assert len(pieces) > 10
    assert all(pieces)
    assert "".join(pieces) == stream.result.text == model.generate(PROMPT, max_tokens=30).text
    assert stream.result.finish_reason == "length"


def test_a_closed_stream_keeps_its_text_so_far(model):
    stream = model.stream(PROMPT, max_tokens=30)
    first = next(stream)
    stream.close()
    assert list(stream) == []
    assert (stream.result.text, stream.result.finish_reason) == (first, None)


def test_a_seed_makes_the_output_reproducible(model):
    settings = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 25}
    first = model.generate(PROMPT, **settings)
    assert first.seed is not None
    again = model.generate(PROMPT, **settings, seed=first.seed)
    other = model.generate(PROMPT, **settings, seed=first.seed ^ 1)
    assert first.ids == again.ids != other.ids


def test_concurrent_streams_are_independent(model):
    solo = [model.generate(prompt, max_tokens=15, temperature=1, seed=4).ids for prompt in ("The king", "A dog")]
    streams = [model.stream(prompt, max_tokens=15, temperature=1, seed=4) for prompt in ("The king", "A dog")]
    for _ in range(40):
        for stream in streams:
            next(stream, None)
    assert [stream.result.ids for stream in streams] == solo


def test_a_prompt_can_be_token_ids(model):
    ids = model.tokenizer.encode(PROMPT)
    assert model.generate(ids, max_tokens=5).ids == model.generate(PROMPT, max_tokens=5).ids
    assert model.generate(np.array(ids), max_tokens=5).ids == model.generate(PROMPT, max_tokens=5).ids


def test_an_empty_prompt_starts_from_the_end_of_text_token(model):
    result = model.generate("", max_tokens=5)
    assert result.prompt_ids == [0]
    assert result.ids == model.generate([0], max_tokens=5).ids


def test_a_stop_string_ends_the_output_and_is_excluded(model):
    complete = model.generate(PROMPT, max_tokens=30)
    stop = complete.text[20:24]
    result = model.generate(PROMPT, max_tokens=30, stop=stop)
    assert result.text == complete.text[: complete.text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.ids == complete.ids[: len(result.ids)]
    assert stop in model.tokenizer.decode(result.ids)
    assert model.generate(PROMPT, max_tokens=30, stop=["never in it", stop]).text == result.text


def test_no_step_runs_after_a_stop_string(model, monkeypatch):
    n_steps = 0
    on_device = ModelRunner.on_device

    def counted(self, chunks):
        nonlocal n_steps
        n_steps += 1
        return on_device(self, chunks)

    monkeypatch.setattr(ModelRunner, "on_device", counted)
    complete = model.generate(PROMPT, max_tokens=30, speculate=False)
    assert n_steps == 30
    n_steps = 0
    result = model.generate(PROMPT, max_tokens=30, speculate=False, stop=complete.text[20:24])
    assert n_steps == len(result.ids) < 30


def test_a_partial_stop_string_is_delivered_at_the_end(model):
    complete = model.generate(PROMPT, max_tokens=8)
    result = model.generate(PROMPT, max_tokens=8, stop=complete.text[-1] + "\x00")
    assert (result.text, result.finish_reason) == (complete.text, "length")


def test_a_stop_token_ends_the_output_and_is_excluded(model):
    complete = model.generate(PROMPT, max_tokens=20)
    stop = complete.ids[7]
    result = model.generate(PROMPT, max_tokens=20, stop_ids=[stop])
    assert result.ids == complete.ids[: complete.ids.index(stop)]
    assert (result.text, result.finish_reason) == (model.tokenizer.decode(result.ids), "stop")


def test_the_end_of_text_token_ends_the_output_unless_ignored(model):
    end = {"logit_bias": {0: 1000.0}}
    stopped = model.generate(PROMPT, max_tokens=4, **end)
    assert (stopped.ids, stopped.text, stopped.finish_reason) == ([], "", "stop")
    ignored = model.generate(PROMPT, max_tokens=4, **end, ignore_eos=True)
    assert (ignored.ids, ignored.finish_reason) == ([0] * 4, "length")


def test_max_tokens_0_generates_nothing(model):
    result = model.generate(PROMPT, max_tokens=0)
    assert (result.ids, result.text, result.finish_reason) == ([], "", "length")


def test_a_full_context_ends_the_output(model):
    result = model.generate([5] * 505, max_tokens=10**9, ignore_eos=True)
    assert (len(result.ids), result.finish_reason) == (7, "context")


@pytest.mark.parametrize("n_tokens", [512, 513, 5000])
def test_a_prompt_that_fills_the_context_is_an_error_with_the_counts(model, n_tokens):
    with pytest.raises(ContextLengthError, match=rf"{n_tokens} tokens.* 512.*shorten it by {n_tokens - 511} ") as error:
        model.generate([5] * n_tokens)
    assert error.value.code == "context_length_exceeded"


def test_logits_of_every_token(model):
    logits = model.logits(PROMPT)
    assert (logits.shape, logits.dtype) == ((len(model.tokenizer.encode(PROMPT)), 4096), np.float32)
    assert np.array_equal(model.logits(model.tokenizer.encode(PROMPT)), logits)
    assert len(model.logits([5] * 512)) == 512
    with pytest.raises(ContextLengthError, match=r"513 tokens.*512"):
        model.logits([5] * 513)
    with pytest.raises(RequestError, match="no tokens"):
        model.logits("")


@pytest.mark.parametrize("prompt", [[4096], [-1], [3, 10**20]])
def test_ids_outside_the_vocabulary_are_an_error(model, prompt):
    for call in (model.generate, model.logits):
        with pytest.raises(RequestError, match=rf"no such token: {prompt[-1]} .*0 to 4095"):
            call(prompt)


@pytest.mark.parametrize("prompt", [[1.5], ["a"], [None], [True], 3, None, b"abc", bytearray(b"abc")])
def test_a_prompt_of_another_type_is_an_error(model, prompt):
    for call in (model.generate, model.logits):
        with pytest.raises(RequestError, match="expected a prompt as text or token ids"):
            call(prompt)


def test_an_invalid_request_raises_before_any_output(model):
    with pytest.raises(RequestError, match="temperature is nan"):
        model.stream(PROMPT, temperature=float("nan"))
    with pytest.raises(RequestError, match="no such token: 4096 "):
        model.stream(PROMPT, logit_bias={4096: 1.0})
    with pytest.raises(RequestError, match="surrogate"):
        model.stream("\ud800")
    with pytest.raises(RequestError, match="stop string"):
        model.stream(PROMPT, stop="")


def test_a_model_without_a_tokenizer_takes_and_returns_ids(model, ids_only):
    ids = model.tokenizer.encode(PROMPT)
    result = ids_only.generate(ids, max_tokens=5)
    assert (result.ids, result.text) == (model.generate(ids, max_tokens=5).ids, "")
    with pytest.raises(TokenizerError, match=r"is text, and tales has no tokenizer.json; put its.*or give token ids"):
        ids_only.generate(PROMPT)
    with pytest.raises(TokenizerError, match="stop strings need a tokenizer"):
        ids_only.generate(ids, stop="a")


def test_backends_sample_the_same_tokens():
    settings = {"max_tokens": 40, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "seed": 8}
    native, reference = (rushlight.load(device=device, dtype="f32") for device in ("cpu", "reference"))
    assert native.generate(PROMPT, **settings).text == reference.generate(PROMPT, **settings).text


def test_many_requests_equal_solo_requests(model):
    prompts = ["Once", "The king was", "", "A dog and a cat", 3.5, "He said", "Two"] * 3
    requests = [
        Request(p, settings={"max_tokens": 5 + i, "temperature": 0.8, "seed": i}) for i, p in enumerate(prompts)
    ]
    pulled = []

    def pull():
        for i, request in enumerate(requests):
            pulled.append(i)
            yield request

    results = {}
    for index, result in model.generate_many(pull(), max_active=4):
        results[index] = result
        assert len(pulled) <= len(results) + 4
    assert sorted(results) == list(range(21))
    for i, result in results.items():
        if i % 7 == 4:
            assert isinstance(result, RequestError)
        else:
            solo = model.generate(prompts[i], **requests[i].settings)
            assert (result.text, result.ids, result.finish_reason) == (solo.text, solo.ids, solo.finish_reason)
    for max_active in (0, 2.5, "many", True):
        with pytest.raises(RequestError, match="max_active"):
            model.generate_many([], max_active=max_active)


def test_an_invalid_request_does_not_stop_the_others(model):
    results = dict(model.generate_many([5, Request("Once", "x", {"max_tokens": 2}), Request("Once", 3)]))
    assert [type(results[i]) for i in range(3)] == [RequestError, rushlight.Generation, RequestError]
    assert "expected a prompt as text or token ids (found int)" in str(results[0])
    assert "must be str (found 3)" in str(results[2])


def test_many_requests_end_at_their_own_stop_strings(model):
    complete = model.generate(PROMPT, max_tokens=30).text
    stops = [complete[5:8], complete[20:24], "never in it"]
    results = dict(model.generate_many([Request(PROMPT, stop, {"max_tokens": 30}) for stop in stops]))
    assert [results[i].text for i in range(3)] == [
        complete[: complete.find(s) if s in complete else None] for s in stops
    ]
    assert [results[i].finish_reason for i in range(3)] == ["stop", "stop", "length"]


def test_n_completions_have_their_own_seeds(model):
    settings = {"max_tokens": 12, "temperature": 1.0}
    prompt = "Once upon a time there was a king " * 12
    texts = model.generate(prompt, n=3, seed=5, **settings)
    assert texts[0].seed == 5
    assert len({text.text for text in texts}) == 3
    for text in texts:
        assert model.generate(prompt, seed=text.seed, **settings).ids == text.ids
    assert [text.stats.cached_tokens for text in texts] == [0, 64, 64]


def test_with_n_a_result_is_a_list(model):
    [one] = model.generate(PROMPT, n=1, max_tokens=3)
    assert one.ids == model.generate(PROMPT, n=None, max_tokens=3).ids
    results = dict(model.generate_many([PROMPT, Request(PROMPT, n=2), Request(PROMPT, n=1)], max_tokens=3))
    assert [len(results[i]) if isinstance(results[i], list) else 0 for i in range(3)] == [0, 2, 1]
    results = dict(model.generate_many([PROMPT, Request(PROMPT, n=3)], n=2, max_tokens=3))
    assert [len(results[i]) for i in range(2)] == [2, 3]


def test_settings_shared_by_many_requests(model):
    own = {"max_tokens": 4, "stop": "never in it"}
    requests = [PROMPT, Request(PROMPT, max_tokens=None), Request(PROMPT, **own), Request(PROMPT, settings=5)]
    shared = {"max_tokens": 12, "temperature": 0.8, "seed": 3, "stop": model.generate(PROMPT, max_tokens=3).text[-2:]}
    results = dict(model.generate_many(requests, **shared))
    expected = model.generate(PROMPT, **shared)
    assert results[0].text == results[1].text == expected.text
    assert results[2].text == model.generate(PROMPT, **{**shared, **own}).text
    assert isinstance(results[3], RequestError)
    for wrong in ({"temperature": -1}, {"max_token": 3}, {"stop": ""}):
        with pytest.raises(RequestError):
            model.generate_many([PROMPT], **wrong)


def test_more_sequences_than_the_queue_and_the_memory_hold(monkeypatch):
    model = rushlight.load(kv_bytes=2_500_000)
    engine = model._default.engine
    monkeypatch.setattr(engine, "_max_waiting", 2)
    settings = {"max_tokens": 80, "temperature": 1.0, "seed": 1}
    requests = [Request(prompt, settings={**settings, "n": 12}) for prompt in (PROMPT, "The king")]
    results = dict(model.generate_many(requests))
    for i, request in enumerate(requests):
        texts = results[i]
        assert texts[0].ids == model.generate(request.prompt, **settings).ids
        assert [len(text.ids) for text in texts] == [80] * 12
    assert engine.pool.n_held == 0


def test_a_longer_prompt_computes_only_its_new_tokens(model):
    first = model.generate([7] * 200, max_tokens=10)
    assert first.stats.cached_tokens == 0
    longer = model.generate([*first.prompt_ids, *first.ids, 5, 6], max_tokens=5)
    assert longer.stats.cached_tokens == 192
    assert longer.ids == rushlight.load().generate(longer.prompt_ids, max_tokens=5).ids


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_logprobs_are_of_the_unmodified_logits(model):
    settings = {"temperature": 0.7, "top_k": 5, "seed": 2, "repetition_penalty": 1.3, "logit_bias": {9: -3.0}}
    result = model.generate(PROMPT, max_tokens=8, logprobs=3, prompt_logprobs=2, **settings)
    expected = log_softmax(model.logits([*result.prompt_ids, *result.ids]))
    n = len(result.prompt_ids)
    assert [entry.id for entry in result.logprobs] == result.ids
    assert result.prompt_logprobs[0] is None
    assert [entry.id for entry in result.prompt_logprobs[1:]] == result.prompt_ids[1:]
    for row, entry in zip(expected, [*result.prompt_logprobs[1:], *result.logprobs], strict=False):
        n_top = 2 if n > 1 else 3
        n -= 1
        assert entry.logprob == row[entry.id]
        most_likely = np.argsort(-row, kind="stable")[:n_top].tolist()
        assert entry.top == tuple((i, row[i]) for i in most_likely)
    assert model.generate(PROMPT, max_tokens=8, **settings).logprobs is None


def test_a_prompt_can_be_scored_without_generating(model):
    ids = model.tokenizer.encode("Once upon a time there was a king " * 20)
    result = model.generate(ids, max_tokens=0, prompt_logprobs=0)
    expected = log_softmax(model.logits(ids))
    assert [entry.logprob for entry in result.prompt_logprobs[1:]] == [
        expected[i, token] for i, token in enumerate(ids[1:])
    ]
    assert (result.ids, result.finish_reason) == ([], "length")
    assert result.prompt_logprobs == model.generate(ids, max_tokens=3, prompt_logprobs=0).prompt_logprobs
    full = model.generate([5] * 512, max_tokens=0, prompt_logprobs=0)
    assert len(full.prompt_logprobs) == 512


def test_a_dropped_stream_frees_its_blocks(model):
    pool = model._default.engine.pool
    held = pool.n_held
    stream = model.stream([3] * 100, max_tokens=50)
    next(stream)
    assert pool.n_held == held + 2
    del stream
    model._default.engine.reclaim()
    assert pool.n_held == held


def test_streams_can_be_read_from_an_event_loop(model):
    prompts = ["The king", "A dog", "Once"]
    solo = [model.generate(prompt, max_tokens=150, temperature=1, seed=4).text for prompt in prompts]

    async def read(prompt, pause_s):
        stream = model.astream(prompt, max_tokens=150, temperature=1, seed=4)
        async for _ in stream:
            await asyncio.sleep(pause_s)
        return stream.result.text

    async def read_all():
        return await asyncio.gather(*(read(prompt, i * 0.0005) for i, prompt in enumerate(prompts)))

    assert asyncio.run(read_all()) == solo
    assert model._default.engine.pool.n_held == 0


def test_an_abandoned_asynchronous_stream_frees_its_blocks(model):
    async def read_some():
        stream = model.astream([3] * 100, max_tokens=300, ignore_eos=True)
        async for _ in stream:
            break
        await stream.aclose()
        task = asyncio.create_task(anext(model.astream([4] * 100, max_tokens=300, ignore_eos=True)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model._default.engine.step()
        return model._default.engine.pool.n_held

    assert asyncio.run(read_some()) == 0
    with pytest.raises(RequestError, match="temperature"):
        model.astream(PROMPT, temperature=-1)


def test_an_asynchronous_stream_of_a_closed_loop_frees_its_blocks(model):
    engine = model._default.engine

    def read_one():
        loop = asyncio.new_event_loop()
        stream = model.astream(PROMPT, max_tokens=300, ignore_eos=True)
        loop.run_until_complete(anext(stream))
        while any(sequence.runnable for sequence in engine._live):  # runs until the sequence pauses
            time.sleep(0.01)
        loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns that the stream was not closed
        read_one()
        gc.collect()
    engine.reclaim()
    assert (engine.pool.n_held, len(engine._live)) == (0, 0)


def test_the_background_thread_ends_with_its_streams(model):
    async def read():
        return [piece async for piece in model.astream(PROMPT, max_tokens=5)]

    assert asyncio.run(read())
    deadline = time.monotonic() + 5
    while any(thread.name == "rushlight" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_process_has_its_own_engine(model):
    expected = model.generate(PROMPT, max_tokens=5).text
    stream = model.stream(PROMPT, max_tokens=20)
    next(stream)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
        child = os.fork()
    if child == 0:
        os.write(write, model.generate(PROMPT, max_tokens=5).text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode() == expected
    os.close(read)
    os.close(write)


def test_threads_and_event_loops_share_the_engine(model):
    prompts = ["The king", "A dog", "Once", "He said"]
    settings = {"max_tokens": 40, "temperature": 1, "seed": 4}
    solo = [model.generate(prompt, **settings).text for prompt in prompts]
    found = {}

    async def read(prompt):
        return "".join([piece async for piece in model.astream(prompt, **settings)])

    async def read_all():
        return await asyncio.gather(*map(read, prompts))

    def in_a_loop(name):
        found[name] = asyncio.run(read_all())

    def in_a_thread(name):
        found[name] = [model.generate(prompt, **settings).text for prompt in prompts]

    def many(name):
        results = dict(model.generate_many([Request(prompt, (), settings) for prompt in prompts], max_active=3))
        found[name] = [results[i].text for i in range(4)]

    threads = [threading.Thread(target=run, args=(i,)) for i, run in enumerate([in_a_loop, in_a_thread, many] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(6), solo)
    assert model._default.engine.pool.n_held == 0


def test_the_engine_reports_its_load():
    model = rushlight.load()
    assert model.engine_stats().n_sampled_tokens == 0
    deltas = model.stream(PROMPT, n=3, max_tokens=20, temperature=1).deltas()
    next(deltas)
    assert model.engine_stats().n_running == 3
    del deltas
    model.generate(PROMPT, max_tokens=2)
    stats = model.engine_stats()
    assert (stats.n_running, stats.n_waiting, stats.n_blocks_held) == (0, 0, 0)
    assert stats.n_sampled_tokens >= 5
