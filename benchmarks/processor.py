"""The kind of a processor, which names the files of its results: `zen4`, `sapphire-rapids`."""

from __future__ import annotations

import platform
import re
from pathlib import Path

AMD = {
    23: {range(0x30): "zen", range(0x30, 0x100): "zen2"},
    25: {
        range(0x10): "zen3",
        range(0x10, 0x20): "zen4",
        range(0x20, 0x60): "zen3",
        range(0x60, 0x80): "zen4",
        range(0xA0, 0xB0): "zen4",
    },
    26: {range(0x100): "zen5"},
}
"""Family -> ranges of models -> the microarchitecture."""

INTEL = {
    0x4F: "broadwell",
    0x55: "skylake",
    0x6A: "ice-lake",
    0x6C: "ice-lake",
    0x8F: "sapphire-rapids",
    0xCF: "emerald-rapids",
    0xAD: "granite-rapids",
    0xAE: "granite-rapids",
}
"""Models of family 6 for servers -> the microarchitecture."""

INTEL_FLAGS = {"amx_fp16": "granite-rapids", "amx_tile": "sapphire-rapids"}
"""Instructions -> the first microarchitecture that has them, where a virtual machine states another one's model."""

TITLES = {
    "sapphire-rapids": "Intel Sapphire Rapids (AVX-512, AMX)",
    "zen3": "AMD Zen 3 (AVX2)",
    "zen4": "AMD Zen 4 (AVX-512)",
    "zen5": "AMD Zen 5 (AVX-512)",
}


def processor_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of this machine's processor; of one that the tables lack, its name in small letters and digits."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return _slug(platform.processor() or platform.machine())
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if fields.get("cpu family", "").isdecimal() and fields.get("model", "").isdecimal():
        family, model = int(fields["cpu family"]), int(fields["model"])
        if fields.get("vendor_id") == "AuthenticAMD":
            for models, kind in AMD.get(family, {}).items():
                if model in models:
                    return kind
        if fields.get("vendor_id") == "GenuineIntel" and family == 6:
            flags = fields.get("flags", "").split()
            kind = INTEL.get(model) or next((INTEL_FLAGS[flag] for flag in INTEL_FLAGS if flag in flags), None)
            if kind:
                return kind
    return _slug(fields.get("model name", platform.machine()))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
