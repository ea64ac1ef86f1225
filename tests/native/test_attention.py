"""Attention beyond plain causal: grouped keys, windows, slopes and soft caps, against float64 and for bit identity."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from native_helpers import Sequences, _native, as_cached, random, textbook_attention

GROUPS = [1, 2, 3, 4, 7, 9]
WINDOWS = [1, 3, 63, 64, 65]
HEAD_DIMS = [8, 10, 20, 64, 80, 96, 128, 256]


def qkv_of(t, n_kv_head, group, head_dim, size=2.0):
    widths = (n_kv_head * group * head_dim, n_kv_head * head_dim, n_kv_head * head_dim)
    return [size * random(t, width, seed=seed) for seed, width in enumerate(widths)]


def slopes_of(n_head):
    """Returns ALiBi's slopes for a power of two heads, and similar ones for other numbers."""
    return (2.0 ** (-8.0 * np.arange(1, n_head + 1) / n_head)).astype(np.float32)


def check(device, kv_format, t, n_kv_head, group, head_dim, steps=None, **options):
    qkv = qkv_of(t, n_kv_head, group, head_dim)
    scale = 0.5 / math.sqrt(head_dim)
    n_head = n_kv_head * group
    q, k, v = qkv
    expected = textbook_attention(q, as_cached(k, kv_format), as_cached(v, kv_format), n_head, scale, **options)
    result = Sequences(device, [qkv], n_head, kv_format, **options).feed_in([steps or [t]], scale)[0]
    assert np.abs(result - expected).max() <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize("n_kv_head", [1, 3])
def test_groups_of_query_heads_share_keys(device, kv_format, n_kv_head):
    for group in GROUPS:
        check(device, kv_format, 131, n_kv_head, group, 20)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim(device, kv_format, head_dim):
    check(device, kv_format, 70, 2, 3, head_dim, window=40, softcap=5.0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_limits_attention(device, kv_format, window):
    for t in [1, 63, 64, 65, 128, 129, 197]:
        check(device, kv_format, t, 2, 1, 10, window=window)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_limits_attention_of_query_groups(device, kv_format, window):
    for group in GROUPS:
        check(device, kv_format, 140, 1, group, 8, window=window)


@pytest.mark.parametrize("n_head", [1, 3, 8])
@pytest.mark.parametrize("t", [1, 64, 150])
def test_alibi_slopes_are_added(device, kv_format, t, n_head):
    check(device, kv_format, t, n_head, 1, 16, slopes=slopes_of(n_head))


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_a_softcap_bounds_scores(device, kv_format, softcap):
    check(device, kv_format, 100, 2, 2, 20, softcap=softcap)


def test_all_options_combined(device, kv_format):
    check(device, kv_format, 150, 2, 3, 20, window=70, slopes=slopes_of(6), softcap=3.0)


def test_a_window_as_long_as_the_sequence_equals_no_window(device, kv_format):
    qkv = qkv_of(150, 1, 2, 16)
    plain = Sequences(device, [qkv], 2, kv_format).feed_in([[150]], 0.3)[0]
    for window in (150, 151, 2**31 - 1):
        assert np.array_equal(Sequences(device, [qkv], 2, kv_format, window=window).feed_in([[150]], 0.3)[0], plain)


def test_a_window_of_one_returns_the_value_of_each_row(device, kv_format):
    qkv = qkv_of(70, 2, 2, 16)
    result = Sequences(device, [qkv], 4, kv_format, window=1).feed_in([[70]], 0.3)[0]
    own = as_cached(qkv[2], kv_format).reshape(70, 2, 16)
    assert np.array_equal(result.reshape(70, 4, 16), np.repeat(own, 2, axis=1))


OPTIONS = [
    {},
    {"window": 3},
    {"window": 64},
    {"window": 65},
    {"slopes": True},
    {"softcap": 4.0},
    {"window": 40, "slopes": True, "softcap": 4.0},
]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_are_bit_identical_in_any_chunks(isa, kv_format, group, options):
    """Compares one step on one thread with chunks and single rows on two threads."""
    if "slopes" in options:
        options = options | {"slopes": slopes_of(2 * group)}
    qkv = qkv_of(140, 2, group, 10)
    expected = Sequences(_native.Device(1, isa), [qkv], 2 * group, kv_format, **options).feed_in([[140]], 0.4)[0]
    device = _native.Device(2, isa)
    for steps in ([1] * 140, [63, 1, 1, 75], [17, 50, 73]):
        cut = Sequences(device, [qkv], 2 * group, kv_format, **options).feed_in([steps], 0.4)[0]
        assert np.array_equal(cut, expected)


@pytest.mark.parametrize("window", [None, *WINDOWS])
def test_sequences_in_a_batch_are_independent(device, kv_format, window):
    for group in GROUPS:
        sequences = [qkv_of(t, 2, group, 12, size=1 + t / 50) for t in (5, 130, 66)]
        batched = Sequences(device, sequences, 2 * group, kv_format, window=window).feed_in(
            [[3, 2], [80, 50], [2, 64]], 0.5
        )
        for sequence, result in zip(sequences, batched, strict=True):
            solo = Sequences(device, [sequence], 2 * group, kv_format, window=window).feed_in(
                [[len(sequence[0])]], 0.5
            )[0]
            assert np.array_equal(result, solo)


LONG = [
    (1, 1, {}),
    (1, 4, {}),
    (3, 3, {}),
    (1, 49, {}),  # more query heads than share a pass
    (1, 3, {"window": 700}),
    (2, 2, {"slopes": True, "softcap": 4.0}),
]
"""(key/value heads, query heads that share one, options) of contexts of several chains of 512 positions."""


def long_of(n_kv_head, group, slopes=False, **options):
    """The queries, keys and values of a long context, and the options of its attention."""
    return qkv_of(1060, n_kv_head, group, 8), options | ({"slopes": slopes_of(n_kv_head * group)} if slopes else {})


@cache
def textbook_long(n_kv_head, group, kv_format, **options):
    (q, k, v), options = long_of(n_kv_head, group, **options)
    return textbook_attention(q, as_cached(k, kv_format), as_cached(v, kv_format), n_kv_head * group, 0.1, **options)


@pytest.mark.parametrize(("n_kv_head", "group", "options"), LONG, ids=str)
def test_long_contexts_equal_the_formula(device, kv_format, n_kv_head, group, options):
    """The last rows of 1,060 positions, one at a time: divided by chains. As accurate as short contexts."""
    expected = textbook_long(n_kv_head, group, kv_format, **options)
    qkv, options = long_of(n_kv_head, group, **options)
    sequences = Sequences(device, [qkv], n_kv_head * group, kv_format, **options)
    result = sequences.feed_in([[510, 500, 47, 1, 1, 1]], 0.1)[0]
    assert np.abs(result - expected).max() <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("n_kv_head", "group", "options"), LONG, ids=str)
def test_long_contexts_are_bit_identical_on_any_number_of_threads(isa, kv_format, n_kv_head, group, options):
    """Single rows and a few, which threads share by chains, equal a prompt in one step on one thread."""
    qkv, options = long_of(n_kv_head, group, **options)

    def computed(threads, steps):
        device = _native.Device(threads, isa)
        return Sequences(device, [qkv], n_kv_head * group, kv_format, **options).feed_in([steps], 0.1)[0]

    expected = computed(1, [1060])
    threads, steps = (1, 2, 3), ([505, *[1] * 15, 5, 3, 490, *[1] * 12, 4, 2, 24], [1000, 20, 4, *[1] * 36])
    if isa == "portable":  # it is slow, and its items are divided in the same way
        threads, steps = threads[2:], steps[:1]
    for n, cut in itertools.product(threads, steps):
        assert np.array_equal(computed(n, cut), expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_long_sequence_in_a_batch_is_independent(isa, kv_format, threads):
    """Chains of one sequence next to others that are not divided."""
    device = _native.Device(threads, isa)
    sequences = [qkv_of(t, 1, 3, 8, size=1 + t / 900) for t in (5, 1200, 66, 1030)]
    steps = [[3, 1, 1], [1198, 1, 1], [60, 5, 1], [1020, 5, 5]]
    batched = Sequences(device, sequences, 3, kv_format).feed_in(steps, 0.3)
    for sequence, result in zip(sequences, batched, strict=True):
        solo = Sequences(_native.Device(1, isa), [sequence], 3, kv_format).feed_in([[len(sequence[0])]], 0.3)[0]
        assert np.array_equal(result, solo)


@pytest.mark.parametrize("t", [512, 513, 1024, 1025])
def test_a_chain_ends_at_a_multiple_of_512(isa, kv_format, t):
    """Each of several chains of equal scores counts for as much as it has positions, whoever merges them."""
    ones = np.ones((t, 8), np.float32)
    v = (np.arange(t, dtype=np.float32) // 512)[:, None] * ones
    device = _native.Device(2, isa)
    result = Sequences(device, [(ones, ones, v)], 1, kv_format).feed_in([[t - 1, 1]], 1.0)[0][-1]
    np.testing.assert_allclose(result, v[:, 0].astype(np.float64).mean(), rtol=1e-6)


def test_chains_far_apart_in_score_are_merged(device, kv_format):
    """One chain's scores may be so much larger that the others vanish."""
    q, k, v = qkv_of(1600, 1, 2, 8)
    for large in (100, 700, 1500):
        keys = k.copy()
        keys[large] = 60 * q[-1, :8]
        expected = textbook_attention(q[-1:], as_cached(keys, kv_format), as_cached(v, kv_format), 2, 1.0)[0]
        result = Sequences(device, [(q, keys, v)], 2, kv_format).feed_in([[1599, 1]], 1.0)[0][-1]
        assert np.abs(result - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("group", [1, 3, 4])
def test_grouped_keys_are_bit_identical_to_repeated_keys(device, kv_format, group):
    q, k, v = qkv_of(100, 2, group, 16)
    repeated = [np.repeat(x.reshape(100, 2, 16), group, axis=1).reshape(100, -1) for x in (k, v)]
    shared = Sequences(device, [(q, k, v)], 2 * group, kv_format).feed_in([[100]], 0.3)[0]
    assert np.array_equal(shared, Sequences(device, [(q, *repeated)], 2 * group, kv_format).feed_in([[100]], 0.3)[0])


@pytest.mark.parametrize("window", WINDOWS)
def test_positions_before_the_window_may_hold_nan(device, kv_format, window):
    """NaN may be in freed blocks and in the visible block; a probability of 0 times NaN would be NaN."""
    for group in GROUPS:
        n = 200
        q, k, v = qkv_of(n, 1, group, 8)
        expected = Sequences(device, [(q, k, v)], group, kv_format, window=window).feed_in([[n]], 0.3)[0]
        sequence = Sequences(device, [(q, k, v)], group, kv_format, window=window)
        sequence.feed([(0, n - 10)], 0.3)
        lost = n - 10 - window + 1  # the first position visible to the next row
        if lost > 0:
            stale = [np.full((lost, x.shape[1]), np.nan, np.float32) for x in (q, k, v)]
            sequence.sequences = [stale]
            sequence.feed([(0, lost)], 0.3)
        sequence.sequences = [(q, k, v)]
        assert np.array_equal(sequence.feed([(n - 10, n)], 0.3)[0], expected[-10:])


def test_positions_after_the_row_may_hold_nan(device, kv_format):
    qkv = qkv_of(64, 2, 3, 8)
    sequence = Sequences(device, [[np.full_like(x, np.nan) for x in qkv]], 6, kv_format, window=9)
    sequence.feed([(0, 64)], 1.0)
    sequence.sequences = [qkv]
    fresh = Sequences(device, [qkv], 6, kv_format, window=9)
    assert np.array_equal(sequence.feed_in([[10, 54]], 1.0)[0], fresh.feed_in([[64]], 1.0)[0])


@pytest.mark.parametrize(
    ("n_head", "widths", "options", "message"),
    [
        (3, (24, 16, 16), {}, "3 query heads are not a multiple of 2 key/value heads"),
        (0, (0, 16, 16), {}, "0 query heads"),
        (4, (32, 32, 16), {}, "do not fit the batch and the cache"),
        (4, (16, 16, 16), {}, "do not fit the batch and the cache"),
        (4, (32, 16, 16), {"window": 0}, "window is 0: expected at least 1"),
        (4, (32, 16, 16), {"window": -5}, "window is -5"),
        (4, (32, 16, 16), {"softcap": 0.0}, "softcap is 0.*positive"),
        (4, (32, 16, 16), {"softcap": math.nan}, "softcap"),
        (4, (32, 16, 16), {"softcap": math.inf}, "softcap"),
        (4, (32, 16, 16), {"slopes": np.ones(2, np.float32)}, "expected 4 slopes, one for each head"),
    ],
)
def test_mismatched_arguments_are_refused(device, n_head, widths, options, message):
    cache = device.kv_cache("f32", 1, 2, 8, 1)
    rows = device.rows(*(np.array(x, np.int32) for x in ([0, 3], [0, 1, 2], [[[0]]])), cache)
    if "slopes" in options:
        options = {"slopes": device.vector(options["slopes"])}
    with pytest.raises(ValueError, match=message):
        device.attention(*(device.array(random(3, n)) for n in widths), rows, cache, 0, n_head, 1.0, **options)
