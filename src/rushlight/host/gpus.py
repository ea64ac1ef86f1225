"""Finds this machine's NVIDIA GPUs, PyTorch and MLX without importing those libraries, which takes seconds."""

from __future__ import annotations

import ctypes
import platform
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

CUDA_ERROR_NO_DEVICE = 100


class Torch(NamedTuple):
    """An installed PyTorch: its version, and the CUDA version that it was built for, if any."""

    version: str
    cuda: str | None


class GPU(NamedTuple):
    """An NVIDIA GPU."""

    name: str
    memory_bytes: int


def torch() -> Torch | None:
    """The installed PyTorch, read from its version.py, or None."""
    folder = _folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r"^__version__ = '(.+?)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda(?:: .+?)? = '(.+?)'", text, re.MULTILINE)
    return Torch(version[1] if version else "of unknown version", cuda[1] if cuda else None)


def mlx() -> str | None:
    """The version of an installed MLX that can compute on this machine, or None."""
    from importlib.metadata import PackageNotFoundError, version

    folder = _folder("mlx")
    # The package "mlx" is only Python; the library comes with "mlx-metal" or "mlx-cpu".
    if folder is None or not any((folder / "lib").glob("libmlx.*")):
        return None
    try:
        return version("mlx")
    except PackageNotFoundError:
        return "of unknown version"


def gpus() -> tuple[GPU, ...] | str:
    """The NVIDIA GPUs that this process may use, at least one; or the reason that there are none."""
    if platform.system() == "Darwin":
        return "CUDA needs an NVIDIA GPU, which current Macs do not have"
    return _gpus("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")


@cache
def _gpus(library: str) -> tuple[GPU, ...] | str:
    """Asks the driver (CUDA driver API, sections "Initialization" and "Device Management")."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver found ({library})"
    error = cuda.cuInit(0)
    if error == CUDA_ERROR_NO_DEVICE:
        return "the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES may hide it"
    if error:
        return f"the NVIDIA driver fails to start (cuInit error {error})"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return tuple(map(_gpu, [cuda] * count.value, range(count.value))) or "the NVIDIA driver finds no GPU"


def _gpu(cuda: ctypes.CDLL, index: int) -> GPU:
    device, name, n_bytes = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(n_bytes), device)
    return GPU(name.value.decode(errors="replace"), n_bytes.value)


def _folder(package: str) -> Path | None:
    """The folder of a package, without importing it."""
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None
