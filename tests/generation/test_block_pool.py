"""The block pool: allocation, sharing by prefix, eviction, and windows."""

import pytest

from rushlight.backends.batch import BLOCK_SIZE, KVShape
from rushlight.generation.block_pool import BlockPool

MAX_ROWS = 2 * BLOCK_SIZE
SHARED = KVShape(1, 1, 1).groups


def tokens(seed, n_blocks=1):
    return [seed * 1000 + i for i in range(n_blocks * BLOCK_SIZE)]


def pool_of(n_blocks, max_evictable, **options):
    """A pool for layers without windows."""
    return BlockPool(SHARED, [n_blocks], [max_evictable], max_rows=MAX_ROWS, **options)


def windowed(window, n_blocks=32, max_evictable=32, *, full=True):
    """A pool for a layer with a window, by default beside one without."""
    groups = KVShape(2, 1, 1, (None, window)).groups if full else KVShape(1, 1, 1, (window,)).groups
    return BlockPool(groups, [n_blocks] * len(groups), [max_evictable] * len(groups), max_rows=MAX_ROWS)


def computed(pool, ids, n_prompt=0, step=MAX_ROWS):
    """The blocks of a sequence that has computed these tokens in steps."""
    blocks = pool.start(pool.match_prefix(ids[:-1]))
    for end in range(blocks.n_cached * BLOCK_SIZE, len(ids) + step, step):
        assert pool.grow(blocks, min(end, len(ids)))
        pool.commit(blocks, ids, min(end, len(ids)), n_prompt)
    return blocks


def allocate(pool):
    """One more block, or None."""
    [part] = pool.parts
    return part.allocate()


def numbers(blocks, group=0):
    return blocks.tables[group].view.tolist()


def matched(pool, ids):
    prefix = pool.match_prefix(ids)
    return prefix.blocks[0]


def counts(pool):
    return pool.n_held, pool.n_evictable, pool.n_available


def test_blocks_are_allocated_from_the_lowest_until_all_are_held():
    pool = pool_of(3, 3)
    blocks = pool.start(pool.match_prefix([]))
    assert not pool.grow(blocks, 4 * BLOCK_SIZE)
    assert numbers(blocks) == [0, 1, 2]
    pool.release(blocks)
    assert counts(pool) == (0, 0, 3)
    assert len(blocks.tables) == blocks.end == 0


def test_a_cached_block_is_evictable_once_it_has_no_holder():
    pool = pool_of(3, 3)
    blocks = computed(pool, [*tokens(1), 5])
    assert counts(pool) == (2, 0, 1)
    pool.release(blocks)
    assert counts(pool) == (0, 1, 3)
    again = pool.start(pool.match_prefix(tokens(1, 2)))
    assert (numbers(again), again.n_cached, counts(pool)) == ([0], 1, (1, 0, 2))


def test_a_prefix_matches_as_far_as_its_blocks_are_equal():
    pool = pool_of(8, 8)
    blocks = numbers(computed(pool, [*tokens(1), *tokens(2)]))
    assert matched(pool, [*tokens(1), *tokens(2), 9]) == blocks
    assert matched(pool, [*tokens(1), *tokens(3)]) == blocks[:1]
    assert matched(pool, tokens(2)) == matched(pool, tokens(1)[:-1]) == []


def test_a_block_with_the_tokens_of_a_cached_one_is_replaced_by_it():
    pool = pool_of(4, 4)
    first, second = (pool.start(pool.match_prefix([])) for _ in range(2))
    for blocks in (first, second):
        pool.grow(blocks, BLOCK_SIZE)
    assert counts(pool) == (2, 0, 2)
    for blocks in (first, second):
        pool.commit(blocks, tokens(1), BLOCK_SIZE)
    assert numbers(second) == numbers(first)
    assert counts(pool) == (1, 0, 3)
    pool.release(first)
    assert counts(pool) == (1, 0, 3)
    pool.release(second)
    assert counts(pool) == (0, 1, 4)


@pytest.mark.parametrize(("max_evictable", "reuses"), [(0, True), (1, True), (2, False)])
def test_evictable_blocks_beyond_the_bound_are_evicted_before_new_ones_are_used(max_evictable, reuses):
    pool = pool_of(8, max_evictable)
    held = [pool.start(pool.match_prefix([])) for _ in range(2)]
    for seed, blocks in enumerate(held, 1):
        pool.grow(blocks, BLOCK_SIZE)
        pool.commit(blocks, tokens(seed), BLOCK_SIZE)
    first, second = map(numbers, held)
    for blocks in held:
        pool.release(blocks)
    assert ([allocate(pool)] == first) == reuses
    assert (matched(pool, tokens(1)) == []) == reuses
    assert matched(pool, tokens(2)) == second


def test_the_last_block_of_a_sequence_is_evicted_first():
    pool = pool_of(2, 2)
    blocks = computed(pool, [*tokens(1), *tokens(2)])
    first, last = numbers(blocks)
    pool.release(blocks)
    assert allocate(pool) == last
    assert matched(pool, [*tokens(1), *tokens(2)]) == [first]


def test_nothing_is_cached_without_sharing():
    pool = pool_of(2, 2, has_prefix_cache=False)
    blocks = computed(pool, tokens(1))
    assert blocks.n_cached == 0
    assert matched(pool, tokens(1)) == []


def test_reset_clears_holders_and_prefixes():
    pool = pool_of(2, 2)
    computed(pool, tokens(1))
    pool.reset()
    assert counts(pool) == (0, 0, 2)
    assert matched(pool, tokens(1)) == []
    assert numbers(computed(pool, tokens(1))) == [0]


def test_a_table_is_read_without_copying_however_long_it_is():
    pool = pool_of(2048, 0)
    blocks = pool.start(pool.match_prefix([]))
    pool.grow(blocks, 2000 * BLOCK_SIZE)
    [one], [other] = blocks.views, blocks.views
    assert len(one) == 2000
    assert one.base is other.base
    assert one.__array_interface__["data"] == other.__array_interface__["data"]


@pytest.mark.parametrize(
    ("window", "n", "first"),
    [
        (BLOCK_SIZE, 126, 0),
        (BLOCK_SIZE, 127, 1),
        (65, 127, 0),
        (65, 128, 1),
        (66, 128, 0),
        (1, 64, 1),
        (1, 63, 0),
        (1000, 640, 0),
    ],
)
def test_a_block_is_released_when_the_next_row_sees_none_of_its_positions(window, n, first):
    pool = windowed(window)
    blocks = computed(pool, tokens(1, 10)[:n], step=1)
    assert blocks.tables[1].first == first
    assert numbers(blocks, 1)[:first] == [-1] * first
    assert -1 not in numbers(blocks, 1)[first:]
    assert numbers(blocks) == list(range(-(-n // BLOCK_SIZE)))


def test_a_long_prompt_holds_no_more_than_its_window_and_one_step():
    pool = windowed(100, n_blocks=500, max_evictable=0)
    blocks = pool.start(pool.match_prefix([]), pool.n_missing(pool.match_prefix([]), 400 * BLOCK_SIZE))
    ids = tokens(1, 400)
    for end in range(MAX_ROWS, len(ids) + 1, MAX_ROWS):
        pool.grow(blocks, end)
        pool.commit(blocks, ids, end)
    full, part = pool.parts
    assert full.n_blocks - full.n_available == 400
    assert part.n_blocks - part._n_fresh <= pool.n_blocks_for(len(ids))[1] + 1


def test_blocks_behind_a_window_are_evicted_before_the_prompts_of_others():
    pool = windowed(BLOCK_SIZE)
    other = computed(pool, tokens(2, 2), n_prompt=2 * BLOCK_SIZE)
    pool.release(other)
    blocks = computed(pool, tokens(1, 6))
    assert pool.match_prefix(tokens(2, 2)).n_blocks == 2
    part, names = pool.parts[1], list(pool.parts[0]._cached)[:2]
    part._n_fresh = 0
    assert part.n_evictable == 2 + 5
    for _ in range(5):
        part.allocate()
    assert [part.find(name) is None for name in names] == [False, False]
    part.allocate()
    assert [part.find(name) is None for name in names] == [True, False]
    pool.release(blocks)


def test_a_prefix_is_matched_where_the_next_row_finds_its_window():
    pool = windowed(BLOCK_SIZE + 1)
    ids = tokens(1, 6)
    pool.release(computed(pool, ids, step=BLOCK_SIZE))
    window = pool.parts[1]
    third = pool.match_prefix(ids).blocks[1][0] - 1  # of the blocks 0 to 5, the row at the end sees the last alone
    names = list(window._cached)
    window._cached.pop(names[3])
    assert pool.match_prefix(ids).n_blocks == 6
    assert pool.match_prefix(ids[: 5 * BLOCK_SIZE]).n_blocks == 5
    assert pool.match_prefix(ids[: 4 * BLOCK_SIZE]).n_blocks == 3
    window._cached.pop(names[5])
    assert pool.match_prefix(ids).n_blocks == 5
    prefix = pool.match_prefix(ids)
    assert prefix.firsts == (0, 4)
    assert [len(blocks) for blocks in prefix.blocks] == [5, 1]
    assert third >= 0


@pytest.mark.parametrize("full", [True, False])
def test_the_window_before_the_prompts_end_stays_cached_while_the_output_runs_on(full):
    pool = windowed(BLOCK_SIZE, n_blocks=16, max_evictable=4, full=full)
    ids = tokens(1, 12)
    n_prompt = 3 * BLOCK_SIZE + 5
    pool.release(computed(pool, ids, n_prompt, step=1))
    assert pool.match_prefix([*ids[:n_prompt], *tokens(9)]).n_blocks == 3


def test_a_prefix_that_a_second_prompt_began_with_is_not_evicted_first():
    pool = windowed(BLOCK_SIZE)
    system = tokens(1, 3)
    for seed, evicted_first in ((2, True), (3, False)):
        blocks = computed(pool, [*system, *tokens(seed, 4)])
        assert blocks.n_found == (0 if evicted_first else 3)
        last = pool.parts[1].find(list(pool.parts[0]._cached)[2])  # of the system prompt
        order = list(pool.parts[1]._evictable)
        assert (last == order[-1]) == (not evicted_first)
        pool.release(blocks)


def test_prefixes_are_forgotten_with_their_last_block():
    pool = windowed(BLOCK_SIZE, n_blocks=8, max_evictable=0)
    for seed in range(20):
        pool.release(computed(pool, tokens(seed, 4)))
    cached = {name for part in pool.parts for name in part._cached}
    assert len(pool.prefixes) <= 2 * len(cached)
    assert len(pool.prefixes) < 20
