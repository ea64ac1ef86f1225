"""Describes the machine and the versions of a benchmark."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rushlight import __version__
from rushlight.host.threads import usable_cores


def machine() -> dict[str, object]:
    """The date, the processor, the usable cores, and the versions of rushlight, Python and NumPy."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "versions": {"rushlight": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor with its vector extensions, from Linux; elsewhere the architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    vectors = [name for flag, name in VECTORS.items() if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *vectors])


VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
"""Flags in /proc/cpuinfo -> names of the vector extensions that determine the speed of a model."""
