"""What a command does with limits on addresses (`ulimit -v`) and on processes (`ulimit -u`)."""

from __future__ import annotations

import os
import resource

TIGHT_BYTES = 2 << 30
"""With this much, a heap for each thread and OpenBLAS's threads are not what matters."""

TIGHT_PROCESSES = 64
"""Threads count as processes here, and other programs' too."""

_M_ARENA_MAX = -8
"""glibc's malloc.h."""


def adapt_to_resource_limits() -> None:
    """Under a tight limit, have OpenBLAS compute with one thread, and if it is on addresses, all threads share a heap.

    glibc sets 64 MB of addresses aside for each thread's heap, OpenBLAS 32 MB and a stack, and the limit counts them as
    if they were memory; and OpenBLAS sends the process SIGINT where it cannot start its threads.
    """
    few_addresses = _is_below(resource.RLIMIT_AS, TIGHT_BYTES)
    if few_addresses or _is_below(resource.RLIMIT_NPROC, TIGHT_PROCESSES):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if few_addresses:
        try:
            import ctypes

            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        except (ImportError, OSError, AttributeError):  # no room for it, or another C library
            pass


def _is_below(kind: int, value: int) -> bool:
    limit = resource.getrlimit(kind)[0]
    return limit != resource.RLIM_INFINITY and limit < value
