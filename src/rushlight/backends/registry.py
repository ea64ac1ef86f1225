"""Probes for the devices of this machine, without importing their libraries, and opens the backend of one."""

from __future__ import annotations

import logging
import platform
import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.dtypes import DTYPES, similar_dtype
from rushlight.errors import DeviceError, DtypeError
from rushlight.host.memory import shortage
from rushlight.host.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.backends.protocol import Backend

_log = logging.getLogger("rushlight")


class DeviceStatus(NamedTuple):
    """A device, and whether this machine has it.

    Attributes:
        name: as `--device` takes it.
        available: whether it can be opened.
        detail: the hardware and the library, or the reason that it is not available.
        install: the next step towards having it, or None.
    """

    name: str
    available: bool
    detail: str
    install: str | None


def devices() -> list[DeviceStatus]:
    """Every device that `--device` accepts, with one entry for each GPU of this machine. Imports no library."""
    return [status for probe in DEVICES.values() for status in probe()]


def open_backend(
    device: str = "auto",
    dtype: str = "auto",
    *,
    threads: int | None = None,
    exact: bool | None = None,
    copy: bool = False,
) -> Backend:
    """Opens the backend of a device at a dtype.

    `auto` selects the fastest available device: a GPU whose library is installed, otherwise the CPU. A device or dtype
    requested by name is never replaced by another. On the CPU, the reference backend computes f64, and everything else
    too if the native extension was not built.

    Args:
        device: auto, one of DEVICES, or cuda:N for the GPU of that number.
        dtype: one of DTYPES.
        threads: the number of threads of the native CPU backend and of PyTorch on the CPU; None is
            RUSHLIGHT_NUM_THREADS or, without it, every usable core.
        exact: whether the native CPU backend computes the same bits on every processor, even where that is slower; None
            is RUSHLIGHT_EXACT.
        copy: whether the native CPU backend reads converted weights into memory; by default it maps their file.

    Raises:
        DeviceError: the device is unknown, not available on this machine or not exact, or the number of threads is
            invalid. The message has the next step.
        DtypeError: the dtype is unknown, or the device does not support it.
    """
    name, index = _name_and_index(device) if isinstance(device, str) else ("", 0)
    if name != "auto" and name not in DEVICES:
        raise DeviceError(f"unknown device {device!r}", remedy=f"use one of: auto, {', '.join(DEVICES)}")
    if dtype not in DTYPES:
        meant = similar_dtype(dtype) if isinstance(dtype, str) else None
        suggestion = f"did you mean {meant}? " if meant else ""
        raise DtypeError(f"unknown dtype {dtype!r}", remedy=f"{suggestion}use one of: {', '.join(DTYPES)}")
    if name == "auto":
        name = device = _fastest()
    found = DEVICES[name]()
    if not found[0].available:
        raise DeviceError(f"device {device} is not available: {found[0].detail}", remedy=found[0].install)
    if index >= len(found):
        gpus = "one GPU, cuda:0" if len(found) == 1 else f"{len(found)} GPUs, cuda:0 to cuda:{len(found) - 1}"
        raise DeviceError(f"device {device} is not available: this machine has {gpus}", remedy="use --device cuda:0")
    if threads is not None:
        threads = threads_for(threads).n
        if name not in {"cpu", "torch-cpu"}:
            _log.warning("--threads has no effect on device %s: its library sets the number of threads", name)
    if not isinstance(exact, bool | None):
        raise DeviceError(f"exact is {exact!r}", expected="True or False", remedy="leave it out for False")
    if exact and not (name == "cpu" and dtype != "f64" and _native_problem() is None):
        raise DeviceError(
            f"device {device} with dtype {dtype} does not compute the same bits on every machine",
            expected="the native kernels of device cpu",
            remedy="leave out --exact",
        )
    return _OPENERS[name](device, dtype, threads, exact, copy)


def _name_and_index(device: str) -> tuple[str, int]:
    """A device without its GPU number, and that number: "cuda:1" -> ("cuda", 1), "cpu" -> ("cpu", 0)."""
    match = re.fullmatch(r"cuda:(\d{1,4})", device, re.ASCII)
    return ("cuda", int(match[1])) if match else (device, 0)


def _fastest() -> str:
    """The device that `auto` selects; logged if it is not the CPU."""
    for name in ("cuda", "metal"):
        status = DEVICES[name]()[0]
        if status.available:
            _log.warning("device auto: %s (%s)", name, status.detail)
            return name
    return "cpu"


# Opening: the only places where a device's library is imported


def _open_cpu(_device: str, dtype: str, threads: int | None, exact: bool | None, copy: bool) -> Backend:
    if dtype != "f64" and _native_problem() is None:
        from rushlight.backends.cpu import CPUBackend

        return CPUBackend(dtype, threads=threads, exact=exact, copy=copy)
    if dtype != "f64":
        _warn_that_numpy_is_slow()
    return _open_reference("cpu", dtype, threads, None, copy)


def _open_reference(_device: str, dtype: str, _threads: int | None, _exact: bool | None, _copy: bool) -> Backend:
    from rushlight.backends.reference import ReferenceBackend

    return ReferenceBackend("f32" if dtype == "auto" else dtype)


def _open_torch(device: str, dtype: str, threads: int | None, _exact: bool | None, _copy: bool) -> Backend:
    from rushlight.backends.cuda import TorchBackend

    return TorchBackend(device, dtype, threads=threads)


def _open_mlx(device: str, dtype: str, _threads: int | None, _exact: bool | None, _copy: bool) -> Backend:
    from rushlight.backends.metal import MLXBackend

    return MLXBackend(device, dtype)


# Probing, without importing any library


def _cpu() -> list[DeviceStatus]:
    problem = _native_problem()
    if problem is None:
        from rushlight.backends import _native

        return [DeviceStatus("cpu", True, f"native kernels, {_native.instruction_sets()[0]}", None)]
    return [
        DeviceStatus(
            "cpu", True, "NumPy: slow, without native kernels", "install a C++ compiler, then reinstall rushlight"
        )
    ]


@cache
def _native_problem() -> str | None:
    """The reason that the native extension cannot be imported, or None if it can.

    Raises:
        MemoryLimitError: it does not fit in memory.
    """
    try:
        from rushlight.backends import _native  # noqa: F401
    except ImportError as error:
        if no_memory := shortage(error, "the native backend"):
            raise no_memory from error
        return str(error)
    return None


@cache  # once is enough
def _warn_that_numpy_is_slow() -> None:
    _log.warning("computing with NumPy, which is slow: the native extension was not built (%s)", _native_problem())


def _metal() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    system, machine = platform.system(), platform.machine()
    if system != "Darwin":
        return [_missing("metal", f"Metal needs a Mac with Apple silicon; this is {system}")]
    if machine != "arm64" and "ARM64" in platform.version():
        fix = "install a Python for arm64, then rushlight in it"
        return [_missing("metal", f"this Python is built for {machine} and runs translated, without Metal", fix)]
    if machine != "arm64":
        return [_missing("metal", "MLX needs a Mac with Apple silicon; this one has an Intel processor")]
    version = installed.mlx()
    if version is None:
        return [_missing("metal", "MLX is not installed", "pip install 'rushlight[metal]'")]
    return [DeviceStatus("metal", True, f"the GPU of this Mac, MLX {version}", None)]


def _mlx_cpu() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    if platform.system() == "Darwin":
        return [_missing("mlx-cpu", "on a Mac, MLX runs on the GPU", "use --device metal")]
    version = installed.mlx()
    if version is None:
        return [_missing("mlx-cpu", "MLX is not installed, or lacks its CPU library", "pip install 'rushlight[metal]'")]
    return [DeviceStatus("mlx-cpu", True, f"MLX {version} on the CPU: slow, for tests of the metal backend", None)]


def _cuda() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    gpus = installed.gpus()
    if isinstance(gpus, str):
        return [_missing("cuda", gpus)]
    torch = installed.torch()
    names = ", ".join(gpu.name for gpu in gpus)
    if torch is None:
        return [_missing("cuda", f"found {names}, but PyTorch is not installed", "pip install 'rushlight[cuda]'")]
    if torch.cuda is None:
        fix = "install a build of PyTorch with CUDA: https://pytorch.org/get-started/locally"
        return [_missing("cuda", f"found {names}, but PyTorch {torch.version} is a build without CUDA", fix)]
    return [
        DeviceStatus(
            f"cuda:{i}" if i else "cuda",
            True,
            f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, PyTorch {torch.version}",
            None,
        )
        for i, gpu in enumerate(gpus)
    ]


def _torch_cpu() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    torch = installed.torch()
    if torch is None:
        return [_missing("torch-cpu", "PyTorch is not installed", "pip install 'rushlight[cuda]'")]
    detail = f"PyTorch {torch.version} on the CPU: slow, for tests of the cuda backend"
    return [DeviceStatus("torch-cpu", True, detail, None)]


def _reference() -> list[DeviceStatus]:
    return [DeviceStatus("reference", True, "NumPy: slow, for comparison with the other devices", None)]


def _missing(name: str, detail: str, fix: str = "use --device cpu") -> DeviceStatus:
    return DeviceStatus(name, False, detail, fix)


DEVICES: dict[str, Callable[[], list[DeviceStatus]]] = {
    "cpu": _cpu,
    "metal": _metal,
    "mlx-cpu": _mlx_cpu,
    "cuda": _cuda,
    "torch-cpu": _torch_cpu,
    "reference": _reference,
}
"""The probe of each device."""

_OPENERS: dict[str, Callable[[str, str, int | None, bool | None, bool], Backend]] = {
    "cpu": _open_cpu,
    "metal": _open_mlx,
    "mlx-cpu": _open_mlx,
    "cuda": _open_torch,
    "torch-cpu": _open_torch,
    "reference": _open_reference,
}
"""The function that opens each device."""
