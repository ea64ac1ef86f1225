"""Models with windows: keys and values behind a window are freed, and the bits are those of a cache that keeps all."""

from dataclasses import replace

import numpy as np
import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.errors import MemoryLimitError
from rushlight.generation import Context
from rushlight.models import TextConfig

KV_SHAPE = TextConfig.kv_shape.fget


def prompts(model):
    ids = [(i * i + 7 * i) % (model.config.vocab_size - 4) + 3 for i in range(330)]
    return [ids, ids[:200] + ids[:70], ids[50:55], ids[:260]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the model, whose cache frees what is behind the windows of 8 positions, or keeps it."""
    fixture = Fixture("gemma3_text")
    fixture.config["max_position_embeddings"] = 32000
    folder = fixture.write(tmp_path / "model")

    def load(*, frees, **options):
        keeps = property(lambda config: replace(KV_SHAPE(config), windows=()))
        monkeypatch.setattr(TextConfig, "kv_shape", property(KV_SHAPE) if frees else keeps)
        return rushlight.load(folder, dtype="f32", **options)

    return load


def same(load, run, **options):
    """Checks that a run has the same results with and without freeing; returns the model that frees, and they."""
    results = []
    for frees in (False, True):
        model = load(frees=frees, **options)
        assert (len(model.config.kv_shape.groups) == 2) == frees
        results.append(run(model))
    assert results[0] == results[1]
    return model, results[1]


@pytest.mark.parametrize(("device", "max_tokens"), [("cpu", 40), ("reference", 4)])
def test_greedy_output_and_its_logprobs_in_a_batch(load, device, max_tokens):
    def run(model):
        many = model.generate_many(prompts(model), max_tokens=max_tokens, ignore_eos=True, logprobs=2)
        return sorted((i, result.ids, result.logprobs) for i, result in many)

    model, _ = same(load, run, device=device)
    stats = model.engine_stats()
    assert stats.n_blocks_held == 0
    windows = next(part for part, group in zip(*parts(model), strict=True) if group.window)
    assert windows._n_fresh < windows.n_blocks


def parts(model):
    pool = model._default.engine.pool
    return pool.parts, pool.groups


def test_a_conversation_continues_from_the_cache(load):
    def run(model):
        ids = prompts(model)[0][:150]
        texts = []
        for _ in range(3):
            found = model.generate(ids, max_tokens=30, ignore_eos=True)
            texts.append(found.ids)
            ids = [*ids, *found.ids, 5, 6, 7]
        return texts

    model, _ = same(load, run)
    assert model.engine_stats().n_cached_tokens >= 128 + 128


def test_several_samples_share_a_prompt(load):
    def run(model):
        found = model.generate(prompts(model)[0], n=3, temperature=0.9, seed=4, max_tokens=30, ignore_eos=True)
        return [each.ids for each in found]

    model, found = same(load, run)
    assert len({tuple(ids) for ids in found}) == 3
    assert model.engine_stats().n_cached_tokens >= 2 * 320


def test_sequences_are_preempted_when_memory_runs_out(load):
    def run(model):
        many = model.generate_many(prompts(model), max_tokens=60, ignore_eos=True)
        return sorted((i, result.ids) for i, result in many)

    block_bytes = load(frees=True).language_model.kv_block_bytes
    _, scarce = same(load, run, kv_bytes=9 * block_bytes)
    assert scarce == run(load(frees=True))


def test_draft_tokens(load):
    def run(model):
        ids = [*prompts(model)[2] * 30]
        return [
            model.generate(ids, max_tokens=60, ignore_eos=True, speculate=speculate).ids for speculate in (True, False)
        ]

    model, (drafted, plain) = same(load, lambda model: [tuple(ids) for ids in run(model)])
    assert drafted == plain
    assert model.engine_stats().n_drafted > 0


def test_beams_and_a_single_context(load):
    def run(model):
        ids = prompts(model)[0][:140]
        beams = model.beam_search(ids, n_beams=3, max_tokens=12, n=3, ignore_eos=True)
        logits = Context(model.language_model, len(ids)).feed(ids, all_logits=True, chunk_rows=13)
        return [(beam.ids, beam.score) for beam in beams], logits.tobytes()

    same(load, run)


@pytest.fixture(params=[("cpu", "mistral"), ("cpu", "gemma3_text"), ("reference", "gemma3_text")], ids="-".join)
def windowed(request, tmp_path):
    """A model that frees what is behind its windows, and its log-probabilities after ids, computed without a cache."""
    device, name = request.param
    model = Fixture(name).load(tmp_path, device=device, dtype="f32")

    def logprobs(ids):
        rows = Context(model.language_model, len(ids)).feed(ids, all_logits=True, chunk_rows=len(ids))
        rows = rows.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    return model, logprobs


def test_beams_equal_those_of_a_search_without_a_cache(windowed):
    model, logprobs = windowed
    prompt, n_beams, max_tokens = prompts(model)[0][:120], 3, 16  # positions in two blocks, then in three
    beams = [(0.0, ())]
    for _ in range(max_tokens):
        longer = [
            (total + logprob, (*ids, token))
            for total, ids in beams
            for token, logprob in enumerate(logprobs([*prompt, *ids])[-1].tolist())
        ]
        beams = sorted(longer, key=lambda each: -each[0])[:n_beams]
    found = model.beam_search(prompt, n_beams=n_beams, n=n_beams, max_tokens=max_tokens, ignore_eos=True)
    assert [tuple(beam.ids) for beam in found] == [ids for _, ids in beams]
    np.testing.assert_allclose([beam.logprob for beam in found], [total for total, _ in beams], rtol=1e-9)


def test_scores_equal_those_without_a_cache(windowed):
    """Of texts far longer than the windows, and of several ends of one text, which share its computation."""
    model, logprobs = windowed
    ids = prompts(model)[0]
    requests = [(ids[:n], ids[n : n + 9]) for n in (5, 63, 64, 200)]
    requests += [(ids[:190], end) for end in ([4], [5, 6, 7], ids[:80], ids[3:6])]
    for (prompt, end), found in zip(requests, model.score_many(requests), strict=True):
        text = [*prompt, *end]
        expected = logprobs(text[:-1])[np.arange(len(text) - 1), text[1:]][len(prompt) - 1 :]
        np.testing.assert_allclose(found.logprobs, expected, rtol=1e-6)
    expected = logprobs(ids[:-1])[np.arange(len(ids) - 1), ids[1:]]
    result = model.perplexity(ids)
    np.testing.assert_allclose(result.nll, -expected.mean(), rtol=1e-6)


def test_beams_and_scores_take_no_memory_for_what_is_behind_windows(load, monkeypatch):
    def needs(model):
        monkeypatch.setattr(model.language_model.backend, "available_bytes", lambda: 0)
        with pytest.raises(MemoryLimitError) as beams:
            model.beam_search([5] * 2000, n_beams=3, max_tokens=100)
        with pytest.raises(MemoryLimitError) as scores:
            next(model.score_many([([5], [6])]))
        return [error.value.need_bytes for error in (beams, scores)]

    kept, freed = needs(load(frees=False)), needs(load(frees=True))
    assert [few / all_ for few, all_ in zip(freed, kept, strict=True)] == [
        pytest.approx((31 + 3 * 2 + 6 * 3 * 3) / (7 * (31 + 3 * 2))),
        pytest.approx((500 + 6 * 64) / (7 * 500)),
    ]
