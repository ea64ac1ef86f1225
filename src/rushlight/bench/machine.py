"""Describes the machine and the versions of a benchmark."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import numpy as np

from rushlight import __version__
from rushlight.host.cpu import cpu_name
from rushlight.host.threads import usable_cores


def machine() -> dict[str, object]:
    """The date, the processor, the usable cores, and the versions of rushlight, Python and NumPy."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "versions": {"rushlight": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }
