"""Adapts to tight limits on address space (`ulimit -v`) and processes (`ulimit -u`)."""

from __future__ import annotations

import os
import resource

TIGHT_BYTES = 2 << 30
"""From this much address space on, the heaps of the threads do not matter."""

TIGHT_PROCESSES = 64
"""The limit counts threads as processes, those of the user's other programs included."""

_M_ARENA_MAX = -8
"""From glibc's malloc.h."""


def adapt_to_resource_limits() -> None:
    """Under a tight limit, let OpenBLAS use one thread; if it is on address space, let all threads share a heap.

    glibc reserves 64 MB of address space for each thread's heap, and OpenBLAS 32 MB and a stack, all of which the limit
    counts as memory; and OpenBLAS sends the process SIGINT if it cannot start its threads.
    """
    few_addresses = _is_below(resource.RLIMIT_AS, TIGHT_BYTES)
    if few_addresses or _is_below(resource.RLIMIT_NPROC, TIGHT_PROCESSES):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if few_addresses:
        try:
            import ctypes

            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        except (ImportError, OSError, AttributeError):  # no address space for it, or another C library
            pass


def _is_below(kind: int, value: int) -> bool:
    limit = resource.getrlimit(kind)[0]
    return limit != resource.RLIM_INFINITY and limit < value
