"""Attention of every backend against the textbook formula in float64: heads, options, chunks, batches."""

import math
import tracemalloc

import numpy as np
import pytest
from backend_helpers import (
    alibi_slopes,
    attend,
    attend_step,
    fill_with_stale_values,
    random,
    rounded,
    textbook_attention,
)

from rushlight.backends import open_backend
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape

N_HEAD, N_KV_HEAD, HEAD_DIM = 6, 2, 10

OPTIONS = {
    "none": {},
    **{f"window {n}": {"window": n} for n in (1, 3, 63, 64, 65, 1000)},
    "slopes": {"slopes": alibi_slopes(N_HEAD)},
    "softcap": {"softcap": 1.5},
    "all": {"window": 65, "slopes": alibi_slopes(N_HEAD), "softcap": 5.0},
}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture
def grouped(request):
    """`grouped(t)`: the queries of one sequence with 6 heads, and its keys and values with 2."""

    def grouped(t, seed=0):
        sizes = (N_HEAD, N_KV_HEAD, N_KV_HEAD)
        return [3 * random(t, n * HEAD_DIM, seed=seed + i) for i, n in enumerate(sizes)]

    return grouped


@pytest.mark.parametrize("t", [1, 2, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 5])
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 4), (3, 5), (2, 64)])
def test_an_entire_sequence(ops, close, t, n_head, head_dim):
    q, k, v = (rounded(ops, 3 * random(t, n_head * head_dim, seed=seed)) for seed in range(3))
    result = attend(ops, [(q, k, v)], [[t]], n_head, 0.3)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, n_head, 0.3))


@pytest.mark.parametrize(("n_head", "n_kv_head", "head_dim"), [(2, 1, 4), (4, 2, 10), (9, 3, 5), (8, 1, 20), (7, 7, 3)])
@pytest.mark.parametrize("t", [1, 5, 70])
def test_query_heads_share_key_heads_group_by_group(ops, close, t, n_head, n_kv_head, head_dim):
    sizes = (n_head, n_kv_head, n_kv_head)
    q, k, v = (rounded(ops, 3 * random(t, n * head_dim, seed=seed)) for seed, n in enumerate(sizes))
    result = attend(ops, [(q, k, v)], [[t]], n_head, 0.3)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, n_head, 0.3))


@pytest.mark.parametrize("t", [1, 70, 3 * BLOCK_SIZE + 5])
def test_windows_slopes_and_softcaps(ops, close, grouped, options, t):
    q, k, v = (rounded(ops, x) for x in grouped(t))
    result = attend(ops, [(q, k, v)], [[t]], N_HEAD, 0.3, **options)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, N_HEAD, 0.3, **options))


def test_decode_steps_with_options(ops, close, grouped, options):
    """A prompt, then one row at a time across a block boundary."""
    q, k, v = (rounded(ops, x) for x in grouped(2 * BLOCK_SIZE + 3))
    steps = [2 * BLOCK_SIZE - 3, *[1] * 6]
    result = attend(ops, [(q, k, v)], [steps], N_HEAD, 0.3, **options)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, N_HEAD, 0.3, **options))


def test_attention_never_builds_a_t_by_t_matrix():
    ops, t = open_backend("reference"), 3000
    q, k, v = (random(t, 4, seed=seed) for seed in range(3))
    tracemalloc.start()
    attend(ops, [(q, k, v)], [[t]], 1, 0.5)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < t * t * 4 / 4


def test_scores_far_apart_do_not_overflow(ops, close):
    q, k, v = (rounded(ops, 100 * random(70, 8, seed=seed)) for seed in range(3))
    result = attend(ops, [(q, k, v)], [[70]], 2, 1.0)[0]
    close(ops.from_numpy(result), textbook_attention(q, k, v, 2, 1.0))


@pytest.mark.parametrize("steps", [[1] * 70, [69, 1], [7] * 10, [64, 6]])
def test_chunks_do_not_change_a_sequence(subject, ops, steps):
    qkv = [random(70, 10, seed=seed) for seed in range(3)]
    chunked, entire = (attend(ops, [qkv], [sizes], 2, 0.4)[0] for sizes in (steps, [70]))
    assert subject.same(chunked, entire)


@pytest.mark.parametrize("steps", [[125, *[1] * 25], [13] * 11 + [7], [64, 86]])
def test_chunks_do_not_change_a_sequence_with_options(subject, ops, grouped, options, steps):
    qkv = grouped(150)
    chunked, entire = (attend(ops, [qkv], [sizes], N_HEAD, 0.4, **options)[0] for sizes in (steps, [150]))
    assert subject.same(chunked, entire)


def test_sequences_in_a_batch_are_independent(subject, ops):
    a, b, c = ([random(t, 12, seed=10 * t + i) for i in range(3)] for t in (5, 90, 66))
    batched = attend(ops, [a, b, c], [[4, 1], [89, 1], [2, 64]], 3, 0.5)
    for sequence, result in zip((a, b, c), batched, strict=True):
        solo = attend(ops, [sequence], [[len(sequence[0])]], 3, 0.5)[0]
        assert subject.same(result, solo)


def test_sequences_in_a_batch_are_independent_with_options(subject, ops, grouped, options):
    """Decode rows of different lengths and a prompt chunk, in one step."""
    a, b, c = (grouped(t, seed=10 * t) for t in (5, 140, 66))
    batched = attend(ops, [a, b, c], [[4, 1], [139, 1], [2, 64]], N_HEAD, 0.5, **options)
    for sequence, result in zip((a, b, c), batched, strict=True):
        solo = attend(ops, [sequence], [[len(sequence[0])]], N_HEAD, 0.5, **options)[0]
        assert subject.same(result, solo)


@pytest.mark.parametrize("n", [1, 4])
def test_blocks_behind_the_window_are_not_read(ops, close, grouped, n):
    """Other sequences may have overwritten their keys and values."""
    t, window = 3 * BLOCK_SIZE + 9, 20
    q, k, v = (rounded(ops, x) for x in grouped(t))
    shape, table = KVShape(2, N_KV_HEAD, HEAD_DIM), [3, 1, 4, 2]
    cache = ops.kv_cache(shape, 5)
    steps = [(0, t - n), (t - n, t)]
    for start, stop in steps:
        batch = Batch.of([Chunk([0] * (stop - start), start, table)], cache)
        result = attend_step(ops, [x[start:stop] for x in (q, k, v)], batch, N_HEAD, 0.3, window=window)
        fill_with_stale_values(ops, cache, table[:2], N_KV_HEAD, HEAD_DIM)
    close(ops.from_numpy(result), textbook_attention(q, k, v, N_HEAD, 0.3, window=window)[-n:])


def test_a_group_of_layers_frees_the_blocks_behind_its_window(ops, close, grouped):
    """Its block table has -1 for them, and a sequence of any length needs two blocks; the others keep all."""
    window, sizes = 20, [60, 1, 1, 1, 1, 36, 44, 1, 40, 1, 1]
    t = sum(sizes)
    q, k, v = (rounded(ops, x) for x in grouped(t))
    cache = ops.kv_cache(KVShape(4, N_KV_HEAD, HEAD_DIM, (None, window, None, window)), [5, 3])
    full = np.array([3, 1, 0, 2], np.int32)
    of_window, free = np.full(4, -1, np.int32), [1, 0]
    windows = {1: window, 2: None, 3: window}
    outputs = {layer: [] for layer in windows}
    end = 0
    for size in sizes:
        start, end = end, end + size
        for j in range(-(-end // BLOCK_SIZE)):
            if (j + 1) * BLOCK_SIZE <= start - window + 1 and of_window[j] >= 0:
                stale = [np.full((BLOCK_SIZE, x.shape[1]), np.nan, np.float32) for x in (q, k, v)]
                freed = Chunk([0] * BLOCK_SIZE, 0, [4], other_blocks=[of_window[j : j + 1].copy()])
                for layer in windows:
                    with np.errstate(all="ignore"):
                        attend_step(ops, stale, Batch.of([freed], cache), N_HEAD, 1.0, layer=layer, window=window)
                free.append(int(of_window[j]))
                of_window[j] = -1
            elif of_window[j] < 0 and j * BLOCK_SIZE >= start // BLOCK_SIZE * BLOCK_SIZE:
                of_window[j] = free.pop(0)
        chunk = Chunk([0] * size, start, full, other_blocks=[of_window.copy()])
        for layer, seen in windows.items():
            rows, batch = [x[start:end] for x in (q, k, v)], Batch.of([chunk], cache)
            outputs[layer].append(attend_step(ops, rows, batch, N_HEAD, 0.3, layer=layer, window=seen))
    assert of_window.tolist()[:2] == [-1, -1]
    for layer, seen in windows.items():
        expected = textbook_attention(q, k, v, N_HEAD, 0.3, window=seen)
        close(ops.from_numpy(np.concatenate(outputs[layer])), expected)


@pytest.mark.parametrize("window", [21, None])
def test_a_window_beyond_what_the_cache_keeps_is_refused(ops, window):
    cache = ops.kv_cache(KVShape(1, N_KV_HEAD, HEAD_DIM, (20,)), 1)
    rows = [random(3, n * HEAD_DIM) for n in (N_HEAD, N_KV_HEAD, N_KV_HEAD)]
    batch = Batch.of([Chunk([0] * 3, 0, [0])], cache)
    with pytest.raises(ValueError, match="the cache keeps only the last 20 positions of layer 0"):
        attend_step(ops, rows, batch, N_HEAD, 1.0, layer=0, window=window)


WRONG_ARGUMENTS = {
    "no window": ({"window": 0}, "window is 0: expected at least 1"),
    "a negative window": ({"window": -1}, "window is -1: expected at least 1"),
    "no softcap": ({"softcap": 0.0}, "softcap is"),
    "a negative softcap": ({"softcap": -1.0}, "softcap is"),
    "a softcap that is not a number": ({"softcap": math.nan}, "softcap is"),
    "an infinite softcap": ({"softcap": math.inf}, "softcap is"),
    "one slope": ({"slopes": np.ones(1, np.float32)}, "expected 4 slopes, one for each head"),
    "more slopes than heads": ({"slopes": np.ones(8, np.float32)}, "expected 4 slopes, one for each head"),
}


@pytest.mark.parametrize(("options", "problem"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_invalid_options_are_refused(ops, options, problem):
    with pytest.raises(ValueError, match=problem):
        attend(ops, [(random(3, 16), random(3, 8), random(3, 8))], [[3]], 4, 0.5, **options)


HEADS_THAT_DO_NOT_FIT = {
    "key heads that do not divide the query heads": (6, (3, 24), (3, 16), (3, 16), 4),
    "more key heads than query heads": (2, (3, 8), (3, 16), (3, 16), 4),
    "query heads that do not divide the channels": (5, (3, 24), (3, 12), (3, 12), 3),
    "keys of fewer heads than the cache's": (4, (3, 16), (3, 8), (3, 8), 4),
    "keys of fewer rows": (4, (3, 16), (1, 8), (1, 8), 2),
    "values of more heads than the keys'": (4, (3, 16), (3, 8), (3, 16), 2),
}


@pytest.mark.parametrize(
    ("n_head", "q", "k", "v", "n_kv_head"), HEADS_THAT_DO_NOT_FIT.values(), ids=HEADS_THAT_DO_NOT_FIT
)
def test_mismatched_heads_are_refused(ops, n_head, q, k, v, n_kv_head):
    batch = Batch.of([Chunk(range(3), 0, [0])], ops.kv_cache(KVShape(1, n_kv_head, 4), 1))
    q, k, v = (ops.from_numpy(random(*shape)) for shape in (q, k, v))
    with pytest.raises(ValueError, match=r"not a multiple of|do not fit the batch and the cache"):
        ops.attention(q, k, v, batch, layer=0, n_head=n_head, scale=1.0)
