"""Counter-based random numbers, which depend only on seed and position.

Philox 4x64-10, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import os
from functools import lru_cache

_MASK = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B

_LANE_BITS = 128
"""The bits of a lane in an integer of several words: enough for the product of two words."""

_GROUP_SIZE = 32
"""Positions whose numbers are computed at once: this takes eight times as long as one."""

_CACHED_GROUPS = 512
"""Cached groups of numbers: several for each running sequence."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int], n: int = 1) -> tuple[int, int, int, int]:
    """Four random 64-bit words for a 256-bit counter and a 128-bit key, both in 64-bit words.

    For n counters at once, each word of the counter and of the result is an integer with a lane of _LANE_BITS for each
    counter.
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
    return _uniforms(seed, position // _GROUP_SIZE)[position % _GROUP_SIZE]


@lru_cache(_CACHED_GROUPS)
def _uniforms(seed: int, i: int) -> list[float]:
    """The numbers of the i-th group of _GROUP_SIZE positions."""
    positions = sum(i * _GROUP_SIZE + lane << _LANE_BITS * lane for lane in range(_GROUP_SIZE))
    words = philox((positions, 0, 0, 0), (seed, 0), _GROUP_SIZE)[0]
    return [(words >> _LANE_BITS * lane + 11 & 2**53 - 1) * 2.0**-53 for lane in range(_GROUP_SIZE)]


def new_seed() -> int:
    """A random seed, below 2⁵³ like every seed from this module, so that every JSON reader reads it exactly."""
    return int.from_bytes(os.urandom(8), "little") >> 11


def completion_seed(seed: int, i: int) -> int:
    """The seed of the i-th completion of a prompt; `seed` for the first."""
    return philox((i, 0, 0, 0), (seed, 1))[0] >> 11 if i else seed


def request_seed(seed: int, i: int) -> int:
    """The seed of the i-th request of a batch job."""
    return philox((i, 1, 0, 0), (seed, 0))[0] >> 11  # the 1 keeps them apart from the numbers for sampling
