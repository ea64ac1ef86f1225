"""The block pool: allocation, sharing by prefix, and eviction."""

from types import SimpleNamespace

import pytest

from rushlight.backends.batch import BLOCK_SIZE
from rushlight.generation.block_pool import ROOT_ID, BlockPool


def tokens(seed, n_blocks=1):
    return [seed * 1000 + i for i in range(n_blocks * BLOCK_SIZE)]


def table_of(pool, ids):
    """Returns the blocks of a sequence that has computed these tokens, with the full ones cached."""
    n_blocks = -(-len(ids) // BLOCK_SIZE)
    table = SimpleNamespace(
        ids=ids, n_computed=len(ids), n_cached_blocks=0, blocks=[pool.allocate() for _ in range(n_blocks)]
    )
    pool.cache_full_blocks(table)
    return table


def counts(pool):
    return pool.n_held, pool.n_evictable, pool.n_available


def test_blocks_are_allocated_from_the_lowest_until_all_are_held():
    pool = BlockPool(3, 3)
    assert [pool.allocate() for _ in range(4)] == [0, 1, 2, None]
    pool.release([0, 1, 2])
    assert counts(pool) == (0, 0, 3)


def test_a_cached_block_is_evictable_once_it_has_no_holder():
    pool = BlockPool(3, 3)
    table = table_of(pool, [*tokens(1), 5])
    assert counts(pool) == (2, 0, 1)
    pool.release(table.blocks)
    assert counts(pool) == (0, 1, 3)
    [block] = pool.match_prefix(tokens(1, 2))
    pool.acquire([block])
    assert counts(pool) == (1, 0, 2)


def test_a_prefix_matches_as_far_as_its_blocks_are_equal():
    pool = BlockPool(8, 8)
    table = table_of(pool, [*tokens(1), *tokens(2)])
    assert pool.match_prefix([*tokens(1), *tokens(2), 9]) == table.blocks
    assert pool.match_prefix([*tokens(1), *tokens(3)]) == table.blocks[:1]
    assert pool.match_prefix(tokens(2)) == []
    assert pool.match_prefix(tokens(1)[:-1]) == []


def test_a_block_with_the_tokens_of_a_cached_one_is_replaced_by_it():
    pool = BlockPool(4, 4)
    first = table_of(pool, tokens(1))
    second = table_of(pool, tokens(1))
    assert second.blocks == first.blocks
    assert counts(pool) == (1, 0, 3)
    pool.release(first.blocks)
    assert counts(pool) == (1, 0, 3)
    pool.release(second.blocks)
    assert counts(pool) == (0, 1, 4)


@pytest.mark.parametrize(("max_evictable", "reuses"), [(0, True), (1, True), (2, False)])
def test_evictable_blocks_beyond_the_bound_are_evicted_before_new_ones_are_used(max_evictable, reuses):
    pool = BlockPool(8, max_evictable)
    tables = [table_of(pool, tokens(seed)) for seed in (1, 2)]
    for table in tables:
        pool.release(table.blocks)
    assert (pool.allocate() == tables[0].blocks[0]) == reuses
    assert (pool.match_prefix(tokens(1)) == []) == reuses
    assert pool.match_prefix(tokens(2)) == tables[1].blocks


def test_the_last_block_of_a_sequence_is_evicted_first():
    pool = BlockPool(2, 2)
    table = table_of(pool, [*tokens(1), *tokens(2)])
    pool.release(table.blocks)
    assert pool.allocate() == table.blocks[1]
    assert pool.match_prefix([*tokens(1), *tokens(2)]) == table.blocks[:1]


def test_nothing_is_cached_without_sharing():
    pool = BlockPool(2, 2, has_prefix_cache=False)
    table = table_of(pool, tokens(1))
    assert table.n_cached_blocks == 0
    assert pool.match_prefix(tokens(1)) == []


def test_reset_clears_holders_and_prefixes():
    pool = BlockPool(2, 2)
    block = table_of(pool, tokens(1)).blocks[0]
    pool.reset()
    assert counts(pool) == (0, 0, 2)
    assert pool.match_prefix(tokens(1)) == []
    assert pool.cache_block(ROOT_ID, tokens(1), pool.allocate()) == block
