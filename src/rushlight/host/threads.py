"""How many threads to compute with: what a user asks for, or what this process may use of the machine."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import NamedTuple

from rushlight.errors import DeviceError
from rushlight.host.cgroup import cgroup_folders, words

VARIABLE = "RUSHLIGHT_NUM_THREADS"
MOST = 1024
"""Beyond any machine that one model is run on: a larger number is a slip."""


_log = logging.getLogger("rushlight")


class Threads(NamedTuple):
    """How many threads compute.

    Attributes:
        n: at least 1, and no more than the usable cores.
        adapts: whether fewer of them are used where that is faster.
    """

    n: int
    adapts: bool


def threads_for(asked: int | None = None) -> Threads:
    """`asked` threads, else what RUSHLIGHT_NUM_THREADS says, else one for each usable core, of which as many as pay.

    More threads than usable cores only wait for one another: such a number is reduced to them, which the "rushlight"
    logger says at level INFO, and the commands as a note.

    Raises:
        DeviceError: the number asked for is not a whole number from 1 to MOST.
    """
    name, value = ("threads", str(asked)) if asked is not None else (VARIABLE, os.environ.get(VARIABLE, ""))
    cores = usable_cores()
    if not value:
        return Threads(cores, adapts=True)
    n = _checked(name, value)
    if n > cores:
        _log.info("computing with %d threads in place of %d: this process may use no more cores", cores, n)
    return Threads(min(n, cores), adapts=False)


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
