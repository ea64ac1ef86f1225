"""A token's logits are bit-identical in one forward, in chunks, from the cache and in a batch."""

import numpy as np
import pytest

import rushlight
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk
from rushlight.generation import Context, LanguageModel


def context(model):
    return Context(LanguageModel.of(model.module, model.module.ops, model.config), model.context_length)


@pytest.mark.parametrize("chunk_rows", [1, 7])
def test_cached_and_chunked_equal_the_full_forward(recording, chunk_rows):
    model, ids = rushlight.load(recording.folder), recording.ids
    assert len(ids) > 3 * BLOCK_SIZE
    chunked = context(model).feed(ids, all_logits=True, chunk_rows=chunk_rows)
    assert np.array_equal(chunked, model.logits(ids))


@pytest.mark.parametrize("recording", ["long_prompt"], indirect=True)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("chunk_rows", [2, 3, 16, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 200])
def test_any_size_of_chunks(recording, chunk_rows, dtype):
    model, ids = rushlight.load(recording.folder, dtype=dtype), recording.ids
    chunked = context(model).feed(ids, all_logits=True, chunk_rows=chunk_rows)
    assert np.array_equal(chunked, model.logits(ids))


@pytest.mark.parametrize("recording", ["long_prompt"], indirect=True)
def test_prefill_then_decode(recording):
    model = rushlight.load(recording.folder)
    fed = context(model)
    found = [fed.feed(recording.prompt_ids)[-1], *(fed.feed([i])[-1] for i in recording.greedy_ids)]
    assert np.array_equal(found, model.logits(recording.ids)[len(recording.prompt_ids) - 1 :])


@pytest.mark.parametrize("recording", ["gelu_new", "inverse_layer", "relu_four_blocks"], indirect=True)
def test_batched_sequences_equal_solo_ones(recording):
    """Three sequences: one prefilled at once, one in chunks, one token by token, over scattered blocks."""
    model, ids = rushlight.load(recording.folder), recording.ids
    texts, sizes = [ids, ids[50:], ids[::-1][:130]], [len(ids), 31, 1]

    n_blocks = -(-len(ids) // BLOCK_SIZE)
    blocks = np.random.default_rng(0).permutation(3 * n_blocks).reshape(3, n_blocks)
    cache = model.module.ops.kv_cache(model.config.kv_shape, blocks.size)
    logits = [[], [], []]
    for step in range(130):
        rows = [slice(step * size, (step + 1) * size) for size in sizes]
        live = [s for s in range(3) if rows[s].start < len(texts[s])]
        chunks = [Chunk(texts[s][rows[s]], rows[s].start, blocks[s], all_logits=True) for s in live]
        together = model.module(Batch.of(chunks, cache))
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        for s, part in zip(live, np.split(together, ends[:-1]), strict=True):
            logits[s].append(part)

    for text, parts in zip(texts, logits, strict=True):
        assert np.array_equal(np.concatenate(parts), model.logits(text))


@pytest.mark.parametrize("recording", ["gelu_new"], indirect=True)
def test_logits_of_only_the_last_token(recording):
    model = rushlight.load(recording.folder)
    assert np.array_equal(context(model).feed(recording.ids), model.logits(recording.ids)[-1:])


@pytest.mark.parametrize("recording", ["long_prompt"], indirect=True)
def test_a_reused_block_does_not_affect_results(recording):
    model, ids = rushlight.load(recording.folder), recording.ids
    cache = model.module.ops.kv_cache(model.config.kv_shape, 6)
    model.module(Batch.of([Chunk(ids, 0, range(6))], cache))
    found = model.module(Batch.of([Chunk(ids[100:110], 0, [3], all_logits=True)], cache))
    assert np.array_equal(found, model.logits(ids[100:110]))
