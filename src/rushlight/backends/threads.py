"""How many threads to compute with: what a user asks for, or what this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

from rushlight.backends.cgroup import cgroup_folders, words
from rushlight.errors import DeviceError

VARIABLE = "RUSHLIGHT_NUM_THREADS"
MOST = 1024
"""Beyond any machine that one model is run on: a larger number is a slip."""


def thread_count(asked: int | None = None) -> int:
    """The threads to start: `asked`, else what RUSHLIGHT_NUM_THREADS says, else as many as this process has cores for.

    Raises:
        DeviceError: the number asked for is not a whole number from 1 to MOST.
    """
    if asked is not None:
        return _checked("threads", str(asked))
    variable = os.environ.get(VARIABLE, "")
    return _checked(VARIABLE, variable) if variable else usable_cores()


def usable_cores(root: Path = Path("/")) -> int:
    """Cores in the affinity mask, or fewer where a cgroup's quota gives less time than they have; at least 1.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_cores(root))))


def _checked(name: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value[:8]) <= MOST:
        raise DeviceError(
            f"{name} is {value!r}", expected=f"a whole number of threads from 1 to {MOST}", remedy="or leave it out"
        )
    return int(value)


def _cgroup_cores(root: Path) -> float:
    """The smallest quota of this process's cgroup and those above it, in cores; infinite where there is none.

    Version 2 has `cpu.max` with "quota period" or "max period" in each folder, version 1 the two in files of their own
    under the cpu controller (kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc).
    """
    quotas = [math.inf]
    for folder in cgroup_folders(root, "cpu"):
        if parts := words(folder / "cpu.max"):
            quotas.append(_quota(parts))
        quotas.append(_quota(words(folder / "cpu.cfs_quota_us") + words(folder / "cpu.cfs_period_us")))
    return min(quotas)


def _quota(parts: list[str]) -> float:
    """Cores for ["150000", "100000"]; no limit for "max", -1, or anything else."""
    if len(parts) == 2 and parts[0].isdecimal() and parts[1].isdecimal() and int(parts[1]):
        return int(parts[0]) / int(parts[1]) or math.inf
    return math.inf
