"""The memory available to this process, and errors for when it runs out."""

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

KV_SHARE = 0.5
"""The share of available memory that keys and values may take, unless the caller sets their size."""

_NO_MEMORY = ("failed to map segment", "annot allocate memory")
"""In error messages of the dynamic linker and C libraries."""

_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")
"""In error messages of Python and C++."""


@contextmanager
def naming_shortages(what: str, need_bytes: int | None = None) -> Iterator[None]:
    """Turns errors for a lack of memory or threads within the block into rushlight's own.

    Args:
        what: the thing that did not fit, for the message.
        need_bytes: its size, if known.

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
            # If it would have fit at first, report what is left now.
            have_bytes = before if need_bytes > before else named.have_bytes
            named = out_of_memory(what, need_bytes if need_bytes > have_bytes else None, have_bytes)
        raise named from error


def shortage(error: Exception, what: str = "the request") -> RushlightError | None:
    """The MemoryLimitError or ThreadLimitError that describes an error; None if it has another cause."""
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, ImportError | OSError) and any(part in text for part in _NO_MEMORY))
    ):
        return out_of_memory(what)
    if isinstance(error, RuntimeError) and any(part in text for part in _NO_THREAD):
        return ThreadLimitError(
            "cannot start a thread",
            remedy="raise the limit on processes (ulimit -u) or on memory (ulimit -v), or use fewer threads",
        )
    return None


def out_of_memory(what: str, need_bytes: int | None = None, have_bytes: int | None = None) -> MemoryLimitError:
    """The error for `what`, with its size if known, and the available memory (by default, as of now)."""
    return MemoryLimitError(
        f"{what} does not fit in memory",
        need_bytes=need_bytes,
        have_bytes=available_bytes() if have_bytes is None else have_bytes,
        remedy="free memory, raise a limit (ulimit -v), use fewer threads, or keep weights in fewer bits (dtype int8)",
    )


def human_bytes(n: float) -> str:
    """A number of bytes with a unit: 512 B, 6.0 KiB, 474.7 MiB."""
    if n < 1024:
        return f"{n} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1023.95:
            return f"{n:.1f} {unit}"
    return f"{n / 1024:,.1f} TiB"


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes available without swapping, within the limits of the cgroups and the process; never below 0.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    left = [_machine_bytes(root)]
    for folder in cgroup_folders(root, "memory"):
        left += _left(folder, "memory.max", "memory.current", "inactive_file")
        left += _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(left + _within_limits(root)))


def _machine_bytes(root: Path) -> int:
    """MemAvailable, which includes reclaimable page cache; without it, half of the machine's memory."""
    found = words(root / "proc/meminfo")
    if "MemAvailable:" in found:
        return int(found[found.index("MemAvailable:") + 1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _within_limits(root: Path) -> list[int]:
    """The bytes that RLIMIT_AS (`ulimit -v`) and RLIMIT_DATA leave of this process's address space.

    In pages, /proc/self/statm has its size first, and that of data and stack sixth (proc_pid_statm(5)). macOS has no
    such file and enforces neither limit.
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
    """A cgroup's limit minus its usage without reclaimable page cache; empty without a limit."""
    limit, usage = words(folder / limit_file), words(folder / usage_file)
    if not (limit and usage and limit[0].isdecimal() and usage[0].isdecimal()):
        return []
    stat = words(folder / "memory.stat")
    cached = int(stat[stat.index(reclaimable) + 1]) if reclaimable in stat else 0
    return [int(limit[0]) - int(usage[0]) + cached]
