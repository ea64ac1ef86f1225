"""Counter-based random numbers: the same seed and position give the same number, whatever ran before or beside.

Philox 4x64-10, from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

_MASK = 2**64 - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 64-bit words for a 256-bit counter and a 128-bit key, each given in 64-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & _MASK, (p0 >> 64) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for the token drawn at `position` under `seed`, both below 2⁶⁴."""
    return (philox((position, 0, 0, 0), (seed, 0))[0] >> 11) * 2.0**-53


def seed_of_text(seed: int, i: int) -> int:
    """The seed of the i-th text of one prompt: that of the first is the one given."""
    return philox((i, 0, 0, 0), (seed, 1))[0] if i else seed
