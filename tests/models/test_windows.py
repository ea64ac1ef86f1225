"""Models with windows: keys and values behind a window are freed, and the bits are those of a cache that keeps all."""

from dataclasses import replace

import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.generation import Context
from rushlight.models import TextConfig

KV_SHAPE = TextConfig.kv_shape.fget


def prompts(model):
    ids = [(i * i + 7 * i) % (model.config.vocab_size - 4) + 3 for i in range(330)]
    return [ids, ids[:200] + ids[:70], ids[50:55], ids[:260]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the model, whose cache frees what is behind the windows of 8 positions, or keeps it."""
    folder = Fixture("gemma3_text").write(tmp_path / "model")

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
