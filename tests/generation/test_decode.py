"""The decode loop over a toy model that knows its own history only through the cache, as a real one does."""

import numpy as np
import pytest

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, KVShape
from rushlight.generation import Context, Sampler, SamplingParams, decode

V = 10


class ToyModel:
    """Says next: (the sum of all tokens so far) mod V. The sum is read off the cache, through attention."""

    def __init__(self, ops):
        self.ops = ops
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        ids = batch.ids[:, None].astype(np.float32)
        mean = self.ops.attention(0 * ids, ids, ids, batch, layer=0, n_head=1, scale=1.0)
        total = np.rint(mean[:, 0] * (batch.positions + 1)).astype(int)[batch.logit_rows]
        return np.eye(V, dtype=np.float32)[total % V]


def run(prompt, *, max_tokens=20, context_length=1000, stop_ids=(), capacity=1000):
    ops = open_backend("reference")
    model = ToyModel(ops)
    context = Context(model, ops, KVShape(1, 1, 1), capacity)
    sampler = Sampler(SamplingParams(), V, prompt)
    tokens = decode(context, prompt, sampler, max_tokens=max_tokens, context_length=context_length, stop_ids=stop_ids)
    return list(tokens), model


def expected(prompt, n):
    ids = list(prompt)
    for _ in range(n):
        ids.append(sum(ids) % V)
    return ids[len(prompt) :]


def test_each_token_is_chosen_from_everything_before_it():
    tokens, model = run([3, 4])
    assert [token.id for token in tokens] == expected([3, 4], 20)
    assert [len(batch.ids) for batch in model.batches] == [2] + [1] * 19  # each token is computed once
    assert [int(batch.positions[-1]) for batch in model.batches] == list(range(1, 21))


def test_blocks_are_filled_one_after_another():
    prompt = [1] * (BLOCK_SIZE - 2)
    tokens, _ = run(prompt, max_tokens=2 * BLOCK_SIZE)
    assert [token.id for token in tokens] == expected(prompt, 2 * BLOCK_SIZE)


def test_max_tokens_ends_it():
    tokens, _ = run([1], max_tokens=3)
    assert [token.finish_reason for token in tokens] == [None, None, "length"]


def test_no_tokens_run_nothing():
    tokens, model = run([1], max_tokens=0)
    assert tokens == model.batches == []


def test_the_context_ends_it_when_it_is_full():
    tokens, _ = run([1, 2, 3], context_length=6, capacity=6)
    assert [token.finish_reason for token in tokens] == [None, None, "context"]


def test_a_stop_token_ends_it_and_is_marked():
    ids = expected([3, 4], 20)
    stop = ids[4]
    tokens, _ = run([3, 4], stop_ids={stop})
    assert [token.id for token in tokens] == ids[: ids.index(stop) + 1]
    assert [token.finish_reason for token in tokens] == [None] * ids.index(stop) + ["stop"]


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 64, 500])
def test_feeding_in_chunks_gives_every_logit_once(chunk_rows):
    ops = open_backend("reference")
    ids = np.random.default_rng(1).integers(0, V, 150).tolist()
    context = Context(ToyModel(ops), ops, KVShape(1, 1, 1), 150)
    logits = context.feed(ids, all_logits=True, chunk_rows=chunk_rows)
    assert logits.argmax(-1).tolist() == (np.cumsum(ids) % V).tolist()
    assert context.length == 150

    last = Context(ToyModel(ops), ops, KVShape(1, 1, 1), 150).feed(ids, chunk_rows=chunk_rows)
    assert np.array_equal(last, logits[-1:])
