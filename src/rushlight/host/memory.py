"""How much memory this process may still take, and the errors for when there is too little."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rushlight.errors import MemoryLimitError, ThreadLimitError
from rushlight.host.cgroup import cgroup_folders, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rushlight.errors import RushlightError

_NO_MEMORY = ("failed to map segment", "annot allocate memory")
"""What the dynamic linker and C libraries say."""

_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")
"""What Python and C++ say."""


@contextmanager
def naming_shortages(what: str, need_bytes: int | None = None) -> Iterator[None]:
    """Within the block, a lack of memory or of threads is an error of rushlight's own.

    Args:
        what: does not fit in memory then.
        need_bytes: how much it takes, if that is known.

    Raises:
        MemoryLimitError, ThreadLimitError: instead of Python's errors.
    """
    before = 0 if need_bytes is None else available_bytes()
    try:
        yield
    except Exception as error:
        named = shortage(error, what)
        if named is None:
            raise
        if need_bytes is not None and isinstance(named, MemoryLimitError):
            # Where there was room for it at first, what is left now is the point.
            have_bytes = before if need_bytes > before else named.have_bytes
            named = out_of_memory(what, need_bytes if need_bytes > have_bytes else None, have_bytes)
        raise named from error


def shortage(error: Exception, what: str = "what is asked for") -> RushlightError | None:
    """The error as rushlight's own, if it is one of Python's for a lack of memory or of threads."""
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, ImportError | OSError) and any(words in text for words in _NO_MEMORY))
    ):
        return out_of_memory(what)
    if isinstance(error, RuntimeError) and any(words in text for words in _NO_THREAD):
        return ThreadLimitError(
            "a thread cannot be started",
            remedy="raise the limit on processes (ulimit -u) or on memory (ulimit -v), or use fewer threads",
        )
    return None


def out_of_memory(what: str, need_bytes: int | None = None, have_bytes: int | None = None) -> MemoryLimitError:
    """The error for what does not fit: how much it needs, if that is known, and how much there is, now if not given."""
    return MemoryLimitError(
        f"{what} does not fit in memory",
        need_bytes=need_bytes,
        have_bytes=available_bytes() if have_bytes is None else have_bytes,
        remedy="free memory, raise a limit (ulimit -v), use fewer threads, or keep weights in fewer bits (dtype int8)",
    )


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping, and within the limits of the cgroups and of the process; never below 0.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    left = [_machine_bytes(root)]
    for folder in cgroup_folders(root, "memory"):
        left += _left(folder, "memory.max", "memory.current", "inactive_file")
        left += _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(left + _within_limits(root)))


def _machine_bytes(root: Path) -> int:
    """MemAvailable, which counts what the page cache would give back; without it, half of the memory there is."""
    found = words(root / "proc/meminfo")
    if "MemAvailable:" in found:
        return int(found[found.index("MemAvailable:") + 1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _within_limits(root: Path) -> list[int]:
    """What RLIMIT_AS (`ulimit -v`) and RLIMIT_DATA leave of this process's addresses, which the kernel counts in pages.

    /proc/self/statm has all of them first, and data and stack sixth (proc_pid_statm(5)); not on macOS, where neither
    limit is held to.
    """
    pages = words(root / "proc/self/statm")
    if len(pages) < 6:
        return []
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    left = []
    for limit, taken in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            left.append(most - int(taken) * page_bytes)
    return left


def _left(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> list[int]:
    """Limit less usage of a cgroup, the page cache that it can drop not counted; nothing without a limit."""
    limit, usage = words(folder / limit_file), words(folder / usage_file)
    if not (limit and usage and limit[0].isdecimal() and usage[0].isdecimal()):
        return []
    stat = words(folder / "memory.stat")
    cached = int(stat[stat.index(reclaimable) + 1]) if reclaimable in stat else 0
    return [int(limit[0]) - int(usage[0]) + cached]
