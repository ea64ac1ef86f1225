"""How much memory this process may still take: what the machine has left, or less where a cgroup gives less."""

from __future__ import annotations

import os
from pathlib import Path

from rushlight.backends.cgroup import cgroup_folders, words


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping, and within the limits of the cgroups; never below 0.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    left = [_machine_bytes(root)]
    for folder in cgroup_folders(root, "memory"):
        left += _left(folder, "memory.max", "memory.current", "inactive_file")
        left += _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(left))


def _machine_bytes(root: Path) -> int:
    """MemAvailable, which counts what the page cache would give back; without it, half of the memory there is."""
    found = words(root / "proc/meminfo")
    if "MemAvailable:" in found:
        return int(found[found.index("MemAvailable:") + 1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> list[int]:
    """Limit less usage of a cgroup, the page cache that it can drop not counted; nothing without a limit."""
    limit, usage = words(folder / limit_file), words(folder / usage_file)
    if not (limit and usage and limit[0].isdecimal() and usage[0].isdecimal()):
        return []
    stat = words(folder / "memory.stat")
    cached = int(stat[stat.index(reclaimable) + 1]) if reclaimable in stat else 0
    return [int(limit[0]) - int(usage[0]) + cached]
