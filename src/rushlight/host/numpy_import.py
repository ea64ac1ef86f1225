"""Imports NumPy without the busy waiting of its OpenBLAS."""

from __future__ import annotations

import os
import sys
from importlib import import_module

__all__ = ["import_numpy"]

_SPINNING = "OPENBLAS_THREAD_TIMEOUT"
"""The logarithm of the processor cycles for which OpenBLAS's threads wait for work in a loop; 26 or 28 by default."""

_LEAST = "4"


def import_numpy() -> None:
    """Imports NumPy, unless it is imported already.

    From then on, OpenBLAS's threads would wait for work in a loop for 0.1 s, on the cores that load the weights. Here
    they sleep at once. That does not slow down products that are worth a second thread. A value that the user has set
    is left alone, and other programs do not inherit this one.
    """
    if "numpy" in sys.modules:
        return
    is_set = _SPINNING in os.environ
    if not is_set:
        os.environ[_SPINNING] = _LEAST
    try:
        import_module("numpy")
    finally:
        if not is_set:
            del os.environ[_SPINNING]
