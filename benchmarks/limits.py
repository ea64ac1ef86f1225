"""What this machine reads and computes at the moment, measured next to everything, since it changes in minutes."""

from __future__ import annotations

import os
from time import perf_counter
from typing import NamedTuple

import numpy as np

from rushlight.backends import _native

READ_ROWS, READ_COLUMNS, PACKED_ROWS = 8192, 4096, 1024
"""A matrix of 134 MB in f32, several times the last cache of a processor's part."""

PEAK_S = 0.003
WIDE = 1.4
"""The least ratio of what all threads read to what one reads in the wide regime of a machine's bandwidth."""


class Limits(NamedTuple):
    """What the machine does at one moment.

    Attributes:
        read_gb_s: bandwidth of reading memory with all threads, in 10⁹ bytes per second.
        read_one_gb_s: the same with one thread.
        peak_gops: operations in registers as products of the dtype compute, with all threads, in 10⁹ per second.
        peak_f32_gops: the same as products of f32 compute, which attention does at every dtype.
    """

    read_gb_s: float
    read_one_gb_s: float
    peak_gops: float
    peak_f32_gops: float


class Probe:
    """Measures the limits with rushlight's native kernels, in this process.

    Args:
        threads: all threads.
    """

    def __init__(self, threads: int) -> None:
        isa = os.environ.get("RUSHLIGHT_ISA") or _native.instruction_sets()[0]
        self._all, self._one = _native.Device(threads, isa), _native.Device(1, isa)
        self._matrix = self._all.weight("f32", READ_COLUMNS, READ_ROWS)
        # Written, so that pages are backed by memory: those that were never written are all the same one.
        rows = np.ones((PACKED_ROWS, READ_COLUMNS), np.float32).view(np.uint8).reshape(-1)
        for first in range(0, READ_ROWS, PACKED_ROWS):
            self._all.pack(self._matrix, rows, "F32", READ_COLUMNS, False, first)
        self._parts: dict[str, int] = {}

    def limits(self, dtype: str) -> Limits:
        """The limits now, the better of two readings each; takes 30 ms. The peak is of products of a dtype."""
        peaks = self._peak_gops(dtype), self._peak_gops("f32")
        return Limits(self._read_gb_s(self._all), self._read_gb_s(self._one), *peaks)

    def _read_gb_s(self, device: _native.Device) -> float:
        times_s = []
        for _ in range(2):
            start = perf_counter()
            device.read(self._matrix)
            times_s.append(perf_counter() - start)
        return self._matrix.nbytes / min(times_s) / 1e9

    def _peak_gops(self, dtype: str) -> float:
        parts = self._parts.get(dtype, 1)
        while True:
            start = perf_counter()
            operations = self._all.peak(dtype, parts)
            seconds = perf_counter() - start
            if seconds >= PEAK_S:
                self._parts[dtype] = parts
                return operations / seconds / 1e9
            parts *= 2


def is_wide(read_gb_s: float, read_one_gb_s: float) -> bool:
    """Whether all threads read much more than one: they have the bandwidth of more than one part of the processor."""
    return read_gb_s >= WIDE * read_one_gb_s
