"""Counter-based random numbers: the same seed and position give the same number, whatever ran before or beside.

Philox 4x64-10, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import os
from functools import lru_cache

_MASK = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B

_LANE_BITS = 128
"""Of a word in an integer of several: as many as its product with another may have."""

_TOGETHER = 32
"""Positions whose numbers are computed together, which takes eight times as long as for one."""

_KEPT = 512
"""How many times so many numbers are kept: some for each text that is being written."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], n: int = 1) -> tuple[int, int, int, int]:
    """Four random 64-bit words for a 256-bit counter and a 128-bit key, each given in 64-bit words.

    For n counters at once, each word of them, given and returned, is an integer with one counter's every _LANE_BITS.
    """
    ones = sum(1 << _LANE_BITS * i for i in range(n))
    words = ones * _MASK
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = p0 >> 64 & words, p1 >> 64 & words
        c0, c1, c2, c3 = high1 ^ c1 ^ k0 * ones, p1 & words, high0 ^ c3 ^ k1 * ones, p0 & words
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for the token drawn at `position` under `seed`, both below 2⁶⁴."""
    return _uniforms(seed, position // _TOGETHER)[position % _TOGETHER]


@lru_cache(_KEPT)
def _uniforms(seed: int, i: int) -> list[float]:
    """Those for the i-th _TOGETHER positions."""
    positions = sum(i * _TOGETHER + lane << _LANE_BITS * lane for lane in range(_TOGETHER))
    words = philox((positions, 0, 0, 0), (seed, 0), _TOGETHER)[0]
    return [(words >> _LANE_BITS * lane + 11 & 2**53 - 1) * 2.0**-53 for lane in range(_TOGETHER)]


def new_seed() -> int:
    """A seed by chance, below 2⁵³ as all that are chosen here: a number of JSON that is read back the same anywhere."""
    return int.from_bytes(os.urandom(8), "little") >> 11


def seed_of_text(seed: int, i: int) -> int:
    """The seed of the i-th text of one prompt: that of the first is the one given."""
    return philox((i, 0, 0, 0), (seed, 1))[0] >> 11 if i else seed


def seed_of_line(seed: int, i: int) -> int:
    """The seed of the i-th prompt of many."""
    return philox((i, 1, 0, 0), (seed, 0))[0] >> 11  # the draws themselves have 0 there
