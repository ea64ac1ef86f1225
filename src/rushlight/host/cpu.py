"""The name of the processor."""

from __future__ import annotations

import platform
from pathlib import Path

VECTOR_EXTENSIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
"""Flags in /proc/cpuinfo -> names of the vector extensions that determine the speed of a model."""


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor with its vector extensions, from Linux; elsewhere the architecture."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    extensions = [name for flag, name in VECTOR_EXTENSIONS.items() if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *extensions])
