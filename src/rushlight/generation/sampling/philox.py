"""Counter-based random numbers: a number depends on its seed and position only.

Philox 4x64-10, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import os
from functools import lru_cache

_MASK = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B

_LANE_BITS = 128
"""The bits of a lane in an integer of several words: as many as the product of two words has."""

_TOGETHER = 32
"""Positions whose numbers are computed at once, which takes eight times as long as for one."""

_KEPT = 512
"""Groups of _TOGETHER numbers that are cached: some for each running sequence."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], n: int = 1) -> tuple[int, int, int, int]:
    """Four random 64-bit words for a 256-bit counter and a 128-bit key, each given in 64-bit words.

    For n counters at once, each word, given and returned, is an integer that has one counter's word every _LANE_BITS.
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
    """A number in [0, 1) with 53 random bits, for the token sampled at `position` with `seed`, both below 2⁶⁴."""
    return _uniforms(seed, position // _TOGETHER)[position % _TOGETHER]


@lru_cache(_KEPT)
def _uniforms(seed: int, i: int) -> list[float]:
    """The numbers of the i-th group of _TOGETHER positions."""
    positions = sum(i * _TOGETHER + lane << _LANE_BITS * lane for lane in range(_TOGETHER))
    words = philox((positions, 0, 0, 0), (seed, 0), _TOGETHER)[0]
    return [(words >> _LANE_BITS * lane + 11 & 2**53 - 1) * 2.0**-53 for lane in range(_TOGETHER)]


def new_seed() -> int:
    """A random seed, below 2⁵³ as every seed made here: every JSON reader reads it back exactly."""
    return int.from_bytes(os.urandom(8), "little") >> 11


def completion_seed(seed: int, i: int) -> int:
    """The seed of the i-th completion of one prompt; the first has the given seed."""
    return philox((i, 0, 0, 0), (seed, 1))[0] >> 11 if i else seed


def request_seed(seed: int, i: int) -> int:
    """The seed of the i-th of many prompts."""
    return philox((i, 1, 0, 0), (seed, 0))[0] >> 11  # the numbers for sampling have 0 there
