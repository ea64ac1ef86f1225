import numpy as np
import pytest

from rushlight.generation.sampling.philox import completion_seed, new_seed, philox, request_seed, uniform

WORDS = [0, 1, 12345, 2**63, 2**64 - 1]


@pytest.mark.parametrize("seed", WORDS)
@pytest.mark.parametrize("position", WORDS)
def test_words_equal_those_of_numpy(seed, position):
    """NumPy's Philox is the same function of counter and key; it increments the counter first."""
    before = (position - 1) % 2**256
    counter = np.array([before >> 64 * i & 2**64 - 1 for i in range(4)], np.uint64)
    generator = np.random.Philox(counter=counter, key=np.array([seed, 7], np.uint64))
    assert list(philox((position, 0, 0, 0), (seed, 7))) == generator.random_raw(4).tolist()


@pytest.mark.parametrize("seed", WORDS)
@pytest.mark.parametrize("position", [0, 31, 32, 1000, 2**64 - 1])
def test_uniform_numbers_use_the_first_word(seed, position):
    assert uniform(seed, position) == (philox((position, 0, 0, 0), (seed, 0))[0] >> 11) * 2.0**-53


def test_new_seeds_are_exact_as_json_numbers():
    """In JavaScript and jq a number is a double."""
    seeds = [f(seed, i) for f in (completion_seed, request_seed) for seed in (0, 1, 2**64 - 1) for i in range(1, 100)]
    seeds += [new_seed() for _ in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**53
    assert completion_seed(2**64 - 1, 0) == 2**64 - 1


def test_uniform_numbers_fill_the_unit_interval():
    numbers = np.array([uniform(3, position) for position in range(4000)])
    assert 0 <= numbers.min() < numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert (abs(counts - 400) < 5 * np.sqrt(400)).all()


def test_neighbouring_seeds_and_positions_are_uncorrelated():
    grid = np.array([[uniform(seed, position) for position in range(300)] for seed in range(300)])
    for other in (np.roll(grid, 1, axis=0), np.roll(grid, 1, axis=1)):
        assert abs(np.corrcoef(grid.ravel(), other.ravel())[0, 1]) < 0.02
