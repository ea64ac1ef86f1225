"""Sliding windows over a text, and the perplexity computed from them."""

import math

import numpy as np
import pytest

from rushlight.generation import Perplexity, sliding_windows


def guide_windows(n_ids, window, stride):
    """Returns (begin, end, new) of each window, by the loop of transformers' guide."""
    previous_end = 0
    for begin in range(0, n_ids, stride):
        end = min(begin + window, n_ids)
        yield begin, end, end - previous_end
        previous_end = end
        if end == n_ids:
            break


@pytest.mark.parametrize("window", [2, 3, 7, 8])
@pytest.mark.parametrize("n_ids", [1, 2, 3, 6, 7, 8, 9, 16, 17, 23])
def test_windows_equal_those_of_the_transformers_guide(n_ids, window):
    for stride in range(1, window + 1):
        expected = [(list(range(a, b)), new) for a, b, new in guide_windows(n_ids, window, stride)]
        assert list(sliding_windows(range(n_ids), window, stride)) == expected


def test_windows_read_their_text_lazily():
    read = []
    ids = (read.append(i) or i for i in range(10**9))
    steps = sliding_windows(ids, 8, 4)
    assert next(steps) == (list(range(8)), 8)
    assert len(read) == 9
    assert next(steps) == (list(range(4, 12)), 4)
    assert len(read) == 13


def test_an_empty_text_has_no_window():
    assert list(sliding_windows([], 4, 2)) == []


def test_perplexity_weights_tokens_and_the_guide_windows():
    result = Perplexity(window=4, stride=2)
    assert math.isnan(result.nll)
    assert math.isnan(result.guide_perplexity)
    result.add(4, np.array([-1.0, -2.0, -3.0]))
    result.add(2, np.array([-5.0, -7.0]))
    assert (result.n_windows, result.n_ids, result.n_scored, result.nll_sum) == (2, 6, 5, 18.0)
    assert result.nll == 18 / 5
    assert result.perplexity == math.exp(18 / 5)
    assert result.guide_perplexity == pytest.approx(math.exp((2.0 * 3 + 6.0 * 1) / 4))


def test_bits_per_byte_is_none_without_bytes():
    result = Perplexity(window=4, stride=2)
    result.add(3, np.array([-math.log(2), -math.log(8)]))  # 2 bits a token
    assert result.bits_per_byte is None
    result.n_bytes = 12
    assert result.bits_per_byte == pytest.approx(2 * 3 / 12)


def test_a_perplexity_above_the_range_of_a_double_is_infinite():
    result = Perplexity(window=4, stride=2)
    result.add(2, np.array([-1000.0]))
    assert result.perplexity == math.inf
