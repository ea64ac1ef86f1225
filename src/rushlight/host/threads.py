"""The number of threads to compute with: as requested, or one for each core that this process may use."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import NamedTuple

from rushlight.errors import DeviceError
from rushlight.host.cgroup import cgroup_folders, words

VARIABLE = "RUSHLIGHT_NUM_THREADS"
MAX_THREADS = 1024
"""Larger numbers are taken for typing errors."""

_log = logging.getLogger("rushlight")


class Threads(NamedTuple):
    """The number of threads.

    Attributes:
        n: from 1 to the number of usable cores.
        adapts: whether an operation uses fewer of them where that is faster.
    """

    n: int
    adapts: bool


def threads_for(requested: int | None = None) -> Threads:
    """The requested number of threads, or RUSHLIGHT_NUM_THREADS, or one for each usable core, adapted to the work.

    More threads than usable cores would only wait for one another, so a larger number is reduced, and logged at INFO.

    Raises:
        DeviceError: the number is not a whole number from 1 to MAX_THREADS.
    """
    name, value = ("threads", str(requested)) if requested is not None else (VARIABLE, os.environ.get(VARIABLE, ""))
    cores = usable_cores()
    if not value:
        return Threads(cores, adapts=True)
    n = _checked(name, value)
    if n > cores:
        _log.info("using %d threads instead of %d: this process may use no more cores", cores, n)
    return Threads(min(n, cores), adapts=False)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores in the affinity mask, or fewer if a cgroup's quota allows less CPU time; at least 1.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_cores(root))))


def _checked(name: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value[:8]) <= MAX_THREADS:
        raise DeviceError(
            f"{name} is {value!r}",
            expected=f"a whole number of threads from 1 to {MAX_THREADS}",
            remedy="or leave it out",
        )
    return int(value)


def _cgroup_cores(root: Path) -> float:
    """The smallest quota of this process's cgroup and its ancestors, in cores; infinite without one.

    Version 2 has `cpu.max` with "quota period" or "max period" in each folder, version 1 has the two in
    separate files under the cpu controller (kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc).
    """
    quotas = [math.inf]
    for folder in cgroup_folders(root, "cpu"):
        if parts := words(folder / "cpu.max"):
            quotas.append(_quota(parts))
        quotas.append(_quota(words(folder / "cpu.cfs_quota_us") + words(folder / "cpu.cfs_period_us")))
    return min(quotas)


def _quota(parts: list[str]) -> float:
    """1.5 cores for ["150000", "100000"]; infinite for "max", -1 or anything else."""
    if len(parts) == 2 and parts[0].isdecimal() and parts[1].isdecimal() and int(parts[1]):
        return int(parts[0]) / int(parts[1]) or math.inf
    return math.inf
