"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rushlight import __version__


def machine() -> dict[str, object]:
    """The processor, the cores that this process may use, the date, and the versions of what computes."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "versions": {"rushlight": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name where Linux tells it, with the widest vectors it has; else the architecture's."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(told.get("flags", "").split())
    vectors = [name for flag, name in VECTORS.items() if flag in flags]
    return ", ".join([told.get("model name", platform.machine()), *vectors])


VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
"""Linux's flags for the instruction sets that decide how fast a model runs."""


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
