"""Memory for keys and values is divided so that one sequence of any length fits if it can."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from rushlight.backends.batch import BLOCK_SIZE, KVShape
from rushlight.generation.kv_budget import divide

MAX_ROWS = 256
BACKEND = SimpleNamespace(kv_block_bytes=lambda shape: 100 * shape.n_layer)


def model(*windows, context_length=4096):
    return SimpleNamespace(
        backend=BACKEND, kv_shape=KVShape(len(windows), 1, 1, windows), context_length=context_length
    )


def test_without_windows_there_are_full_contexts_or_what_fits():
    assert divide([model(None, None)], 10**9, 8, MAX_ROWS) == [[8 * 64]]
    assert divide([model(None, None)], 200 * 77 + 199, 8, MAX_ROWS) == [[77]]
    assert divide([model(None)], 0, 8, MAX_ROWS) == [[0]]


def test_a_draft_model_has_as_many_blocks_as_the_model():
    assert divide([model(None, None), model(None)], 300 * 50, 8, MAX_ROWS) == [[50], [50]]


def test_with_enough_memory_every_sequence_has_its_window():
    at_once = -(-(512 + MAX_ROWS - 2) // BLOCK_SIZE) + 1
    assert divide([model(None, 512, 512)], 10**9, 8, MAX_ROWS) == [[8 * 64, 8 * at_once]]
    assert divide([model(512, 512)], 10**9, 8, MAX_ROWS) == [[8 * at_once]]


def test_windows_leave_half_of_scarce_memory_to_the_other_layers():
    [[full, windows]] = divide([model(None, 512, 512)], 10_000, 64, MAX_ROWS)
    assert windows * 200 <= 5_000 <= full * 100 + 100


@given(
    allowed=st.integers(0, 400_000),
    windows=st.lists(st.sampled_from([None, None, 1, 64, 500, 4000]), min_size=1, max_size=6),
    max_sequences=st.integers(1, 64),
    length=st.integers(1, 4096),
)
def test_a_sequence_fits_if_its_blocks_do(allowed, windows, max_sequences, length):
    one = model(*windows)
    [n_blocks] = divide([one], allowed, max_sequences, MAX_ROWS)
    groups = one.kv_shape.groups
    assert sum(n * 100 * group.n_layer for n, group in zip(n_blocks, groups, strict=True)) <= allowed
    longest = [group.n_blocks_for(4096, MAX_ROWS) for group in groups]
    if sum(n * 100 * group.n_layer for n, group in zip(longest, groups, strict=True)) <= allowed:
        assert all(n >= least for n, least in zip(n_blocks, longest, strict=True))
    if sum(100 * group.n_layer for group in groups) * -(-length // BLOCK_SIZE) <= allowed // 2:
        needs = [group.n_blocks_for(length, MAX_ROWS) for group in groups]
        assert all(n >= least for n, least in zip(n_blocks, needs, strict=True))
