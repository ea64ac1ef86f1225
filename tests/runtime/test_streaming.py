"""Streams of text and of deltas, synchronous and asynchronous, of one completion and of several."""

import asyncio
import gc
from itertools import groupby

import numpy as np
import pytest

import rushlight
from rushlight import Delta
from rushlight.errors import GenerationError, QueueFullError, RequestError

PROMPT = "Once upon a time"
SAMPLED = {"temperature": 1.1, "seed": 5, "max_tokens": 25}
SETTINGS = {
    "greedy": {"max_tokens": 20},
    "sampled": SAMPLED,
    "stop string": {**SAMPLED, "max_tokens": 60, "stop": [" the", "and"]},
    "stop token": {**SAMPLED, "stop_ids": list(range(0, 4096, 16))},
    "characters of several tokens": {
        "max_tokens": 20,
        "logit_bias": dict.fromkeys(range(100, 240), 12.0),
        "temperature": 1,
    },
    "no tokens": {"max_tokens": 0},
    "speculated": {"max_tokens": 40, "speculate": True},
}


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


def read(stream):
    return list(stream.deltas())


def read_async(model, *args, **settings):
    async def deltas():
        stream = model.astream(*args, **settings)
        return [delta async for delta in stream.deltas()], stream.results

    return asyncio.run(deltas())


def n_held(model):
    """Returns the numbers of blocks and sequences that the engine holds, once no step is running."""
    engine = model._default.engine
    engine.step()
    return engine.pool.n_held, len(engine._live)


def check_deltas(deltas, generations):
    """Compares the deltas of a stream with the generations of the same request."""
    assert {delta.index for delta in deltas} == set(range(len(generations)))
    for index, generation in enumerate(generations):
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(map(str, own)) == generation.text
        assert [token.id for delta in own for token in delta.tokens] == generation.ids
        assert [delta.finish_reason for delta in own] == [None] * (len(own) - 1) + [generation.finish_reason]
        assert all(delta.text for delta in own[:-1])
        if generation.logprobs is not None:
            assert [token.logprob for delta in own for token in delta.tokens] == generation.logprobs


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n", [1, 3])
def test_deltas_join_to_the_generations(model, name, n):
    settings = {"seed": 1, **SETTINGS[name], "n": n, "logprobs": 1}
    generations = model.generate(PROMPT, **settings)
    stream = model.stream(PROMPT, **settings)
    check_deltas(read(stream), generations)
    assert [(result.text, result.ids) for result in stream.results] == [(g.text, g.ids) for g in generations]
    deltas, results = read_async(model, PROMPT, **settings)
    check_deltas(deltas, generations)
    assert [result.finish_reason for result in results] == [g.finish_reason for g in generations]
    assert n_held(model) == (0, 0)


def test_iterating_a_stream_gives_the_text_of_its_deltas(model):
    settings = SETTINGS["stop string"]
    texts = list(model.stream(PROMPT, **settings))
    assert texts == [delta.text for delta in read(model.stream(PROMPT, **settings)) if delta.text]
    assert all(texts)


@pytest.mark.parametrize("name", ["stop string", "characters of several tokens"])
def test_delivered_text_is_never_retracted(model, name):
    settings = {"seed": 1, **SETTINGS[name]}
    text, final = "", model.generate(PROMPT, **settings).text
    for delta in model.stream(PROMPT, **settings).deltas():
        text += delta.text
        assert final.startswith(text)
    assert text == final


def test_a_token_has_its_text_and_logprobs(model):
    deltas = read(model.stream(PROMPT, max_tokens=12, logprobs=2))
    tokens = [token for delta in deltas for token in delta.tokens]
    assert "".join(token.text for token in tokens) == "".join(delta.text for delta in deltas)
    assert all(token.logprob.id == token.id and len(token.logprob.top) == 2 for token in tokens)
    assert all(token.logprob is None for delta in read(model.stream(PROMPT, max_tokens=2)) for token in delta.tokens)


def test_the_last_delta_releases_text_held_back_for_a_stop_string(model):
    full = model.generate(PROMPT, max_tokens=8)
    *_, last = model.stream(PROMPT, max_tokens=8, stop=full.text[-1] + "\x00").deltas()
    assert last.text.endswith(full.text[-1])
    assert last.finish_reason == "length"


def test_the_sequences_of_a_request_interleave(model):
    deltas = read(model.stream(PROMPT, n=3, speculate=False, **SAMPLED))
    turns = [index for index, _ in groupby(delta.index for delta in deltas)]
    assert len(turns) > 30


def test_a_model_without_a_tokenizer_streams_ids():
    model = rushlight.load()
    model.tokenizer = None
    deltas = read(model.stream([5, 6, 7], max_tokens=4))
    assert [(delta.text, len(delta.tokens)) for delta in deltas] == [("", 1)] * 4
    assert [delta.tokens[0].text for delta in deltas] == [None] * 4
    assert list(model.stream([5, 6, 7], max_tokens=4)) == []


def test_iterating_over_the_text_of_several_completions_is_an_error(model):
    stream = model.stream(PROMPT, n=2, max_tokens=3)
    for read_text in (iter, next):
        with pytest.raises(RequestError, match=r"the text of 2 completions is interleaved; .*stream\.deltas\(\)"):
            read_text(stream)
    with pytest.raises(RequestError, match="interleaved"):
        aiter(model.astream(PROMPT, n=2))


def test_str_of_a_delta_is_its_text():
    assert f"{Delta(0, 'word', ())}" == "word"


@pytest.mark.parametrize("leave", ["close", "drop the deltas", "drop the stream"])
def test_leaving_a_stream_cancels_all_its_sequences(model, leave):
    stream = model.stream([3] * 100, n=4, max_tokens=100, ignore_eos=True, temperature=1)
    deltas = stream.deltas()
    assert next(deltas).index == 0
    assert n_held(model)[1] == 4
    if leave == "close":
        stream.close()
        assert list(deltas) == []
        assert all(result.finish_reason is None for result in stream.results)
    elif leave == "drop the deltas":
        del stream, deltas
    else:
        del deltas, stream
    stats = model.engine_stats()
    assert (stats.n_waiting, stats.n_running, stats.n_blocks_held) == (0, 0, 0)
    assert n_held(model) == (0, 0)


@pytest.mark.parametrize("leave", ["close", "cancel", "drop"])
def test_leaving_an_asynchronous_stream_cancels_all_its_sequences(model, leave):
    async def read_some():
        stream = model.astream([3] * 100, n=4, max_tokens=300, ignore_eos=True, temperature=1)
        if leave == "cancel":

            async def read_on():
                async for _ in stream.deltas():
                    pass

            task = asyncio.create_task(read_on())
            while not stream.result.ids:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        async for _ in stream.deltas():
            break
        if leave == "close":
            await stream.aclose()

    asyncio.run(read_some())
    gc.collect()
    model._default.engine.step()
    assert n_held(model) == (0, 0)


def test_a_finished_sequence_frees_its_blocks_while_the_others_continue(model):
    settings = {"n": 2, "stop": ["."], "temperature": 1, "seed": 3, "max_tokens": 300}
    assert len({len(generation.ids) for generation in model.generate(PROMPT, **settings)}) == 2
    deltas = model.stream(PROMPT, **settings).deltas()
    next(delta for delta in deltas if delta.finish_reason)
    engine = model._default.engine
    engine.reclaim()
    assert len(engine._live) == 1
    assert next(deltas).text


def test_an_invalid_request_raises_before_the_stream(model):
    for call in (model.stream, model.astream):
        with pytest.raises(RequestError, match="n is 0"):
            call(PROMPT, n=0)


def test_an_error_of_one_sequence_ends_the_stream_and_cancels_the_others():
    model = rushlight.load()
    stream = model.stream(PROMPT, n=2, max_tokens=50, temperature=1, ignore_eos=True)
    deltas = stream.deltas()
    next(deltas)
    stream._completions[1].sequence.fail(GenerationError("broken"))
    with pytest.raises(GenerationError, match="broken"):
        list(deltas)
    assert n_held(model) == (0, 0)


def test_more_sequences_than_the_queue_holds(monkeypatch):
    model = rushlight.load(kv_bytes=2_500_000)
    monkeypatch.setattr(model._default.engine, "_max_waiting", 2)
    settings = {"max_tokens": 80, "temperature": 1.0, "seed": 1, "n": 12}
    check_deltas(read(model.stream(PROMPT, **settings)), model.generate(PROMPT, **settings))
    with pytest.raises(QueueFullError):
        read_async(model, PROMPT, **settings)
    assert n_held(model) == (0, 0)


def test_progress_counts_the_prompt(model):
    stream = model.stream(np.arange(100, 200), max_tokens=3, n=2)
    assert stream.prompt_progress == (0, 100)
    next(stream.deltas())
    assert stream.prompt_progress == (100, 100)
