"""What a process does with a limit on its addresses (`ulimit -v`)."""

from __future__ import annotations

import os
import resource

TIGHT_BYTES = 2 << 30
"""With this much, a heap for each thread and OpenBLAS's threads are not what matters."""

_M_ARENA_MAX = -8
"""glibc's malloc.h."""


def spare_addresses() -> None:
    """Under a tight limit, have all threads share one heap, and OpenBLAS compute with one.

    glibc sets 64 MB of addresses aside for each thread's heap, OpenBLAS 32 MB and a stack, and the limit counts them as
    if they were memory.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= TIGHT_BYTES:
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (ImportError, OSError, AttributeError):  # no room for it, or another C library: then they are not spared
        pass
