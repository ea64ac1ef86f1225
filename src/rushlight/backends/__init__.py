"""The devices a model can run on: one file each, behind `protocol.Backend`."""

from __future__ import annotations

import logging
import platform
import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from rushlight.errors import DeviceError, DtypeError
from rushlight.host.memory import shortage
from rushlight.host.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.backends.protocol import Backend

__all__ = ["DEVICES", "DTYPES", "DeviceStatus", "devices", "open_backend"]

DTYPES = ("auto", "f32", "f64", "f16", "bf16", "int8", "int4")
"""The dtype words; which of them a device computes in is the device's matter. auto is the device's choice."""

_log = logging.getLogger("rushlight")


class DeviceStatus(NamedTuple):
    """What is known of a device on this machine without loading anything for it."""

    name: str
    available: bool
    detail: str
    install: str | None
    """The next step for a user who wants it, or None where there is none."""


def devices() -> list[DeviceStatus]:
    """All devices that `--device` names, with what is on this machine; a line for each GPU. Imports no library."""
    return [status for probe in DEVICES.values() for status in probe()]


def open_backend(
    device: str = "auto", dtype: str = "auto", *, threads: int | None = None, exact: bool | None = None
) -> Backend:
    """The backend for a device word and a dtype word.

    `auto` takes the fastest device that is there: a GPU if there is one with its library, else the CPU. A device or
    dtype asked for by name is never replaced by another. On the CPU, f64 is computed by the reference backend, and so
    is everything where the native one was not built.

    Args:
        device: auto, a word of DEVICES, or cuda:N for the GPU of that number.
        dtype: one of DTYPES.
        threads: how many the native CPU backend and PyTorch on the CPU compute with; None is RUSHLIGHT_NUM_THREADS, or
            all that it may use.
        exact: the native CPU backend computes the same bits on every processor, where that is slower too; None is what
            RUSHLIGHT_EXACT says there.

    Raises:
        DeviceError: the device is unknown, or not on this machine, or does not compute exactly, or there is something
            wrong with the number of threads; says what to do.
        DtypeError: the dtype is unknown, or the device does not compute in it.
    """
    name, index = _name_and_index(device) if isinstance(device, str) else ("", 0)
    if name != "auto" and name not in DEVICES:
        raise DeviceError(f"there is no device {device!r}", remedy=f"use one of: auto, {', '.join(DEVICES)}")
    if dtype not in DTYPES:
        raise DtypeError(f"there is no dtype {dtype!r}", remedy=f"use one of: {', '.join(DTYPES)}")
    if name == "auto":
        name = device = _fastest()
    found = DEVICES[name]()
    if not found[0].available:
        raise DeviceError(f"device {device} is not available: {found[0].detail}", remedy=found[0].install)
    if index >= len(found):
        here = "one GPU, cuda:0" if len(found) == 1 else f"{len(found)} GPUs, cuda:0 to cuda:{len(found) - 1}"
        raise DeviceError(f"device {device} is not available: this machine has {here}", remedy="use --device cuda:0")
    if threads is not None:
        threads = threads_for(threads).n
        if name not in {"cpu", "torch-cpu"}:
            _log.warning("the %s backend leaves the number of threads to its library, whatever --threads says", name)
    if not isinstance(exact, bool | None):
        raise DeviceError(f"exact is {exact!r}", expected="True or False", remedy="leave it out for False")
    if exact and not (name == "cpu" and dtype != "f64" and _native_problem() is None):
        raise DeviceError(
            f"device {device} with dtype {dtype} does not compute the same bits on every machine",
            expected="the native kernels of device cpu",
            remedy="leave out --exact",
        )
    return _OPENERS[name](device, dtype, threads, exact)


def _name_and_index(device: str) -> tuple[str, int]:
    """Whose probe knows a device word, and the GPU's number: "cuda:1" -> ("cuda", 1), "cpu" -> ("cpu", 0)."""
    match = re.fullmatch(r"cuda:(\d{1,4})", device, re.ASCII)
    return ("cuda", int(match[1])) if match else (device, 0)


def _fastest() -> str:
    """The device that `auto` is, said where it is not the CPU."""
    for name in ("cuda", "metal"):
        status = DEVICES[name]()[0]
        if status.available:
            _log.warning("device auto: %s (%s)", name, status.detail)
            return name
    return "cpu"


# Opening: the only places where a device's library is imported


def _open_cpu(_device: str, dtype: str, threads: int | None, exact: bool | None) -> Backend:
    if dtype != "f64" and _native_problem() is None:
        from rushlight.backends.cpu import CPUBackend

        return CPUBackend(dtype, threads=threads, exact=exact)
    if dtype != "f64":
        _say_that_it_is_slow()
    return _open_reference("cpu", dtype, threads, None)


def _open_reference(_device: str, dtype: str, _threads: int | None, _exact: bool | None) -> Backend:
    from rushlight.backends.reference import ReferenceBackend

    return ReferenceBackend("f32" if dtype == "auto" else dtype)


def _open_torch(device: str, dtype: str, threads: int | None, _exact: bool | None) -> Backend:
    from rushlight.backends.cuda import TorchBackend

    return TorchBackend(device, dtype, threads=threads)


def _open_mlx(device: str, dtype: str, _threads: int | None, _exact: bool | None) -> Backend:
    from rushlight.backends.metal import MLXBackend

    return MLXBackend(device, dtype)


# Probing: what is there, without importing any library


def _cpu() -> list[DeviceStatus]:
    problem = _native_problem()
    if problem is None:
        from rushlight.backends import _native

        return [DeviceStatus("cpu", True, f"native kernels, {_native.instruction_sets()[0]}", None)]
    return [DeviceStatus("cpu", True, "NumPy, slowly", "install a C++ compiler, then rushlight again")]


@cache
def _native_problem() -> str | None:
    """Why the native extension cannot be used, or None if it can.

    Raises:
        MemoryLimitError: it is there, and does not fit in memory.
    """
    try:
        from rushlight.backends import _native  # noqa: F401
    except ImportError as error:
        if no_memory := shortage(error, "the native backend"):
            raise no_memory from error
        return str(error)
    return None


@cache  # once is enough
def _say_that_it_is_slow() -> None:
    _log.warning("computing with NumPy, slowly: the native backend was not built (%s)", _native_problem())


def _metal() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    system, machine = platform.system(), platform.machine()
    if system != "Darwin":
        return [_missing("metal", f"Metal is the GPU of Macs with Apple silicon, and this is {system}")]
    if machine != "arm64" and "ARM64" in platform.version():
        fix = "install a Python for arm64, and rushlight in it"
        return [_missing("metal", f"this Python is for {machine} and runs translated, without Metal", fix)]
    if machine != "arm64":
        return [_missing("metal", "MLX needs a Mac with Apple silicon, and this one has an Intel processor")]
    version = installed.mlx()
    if version is None:
        return [_missing("metal", "MLX is not installed", "pip install 'rushlight[metal]'")]
    return [DeviceStatus("metal", True, f"the GPU of this Mac, MLX {version}", None)]


def _mlx_cpu() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    if platform.system() == "Darwin":
        return [_missing("mlx-cpu", "on a Mac, MLX computes on the GPU", "use --device metal")]
    version = installed.mlx()
    if version is None:
        return [_missing("mlx-cpu", "MLX is not installed with its CPU part", "pip install 'rushlight[metal]'")]
    return [DeviceStatus("mlx-cpu", True, f"MLX {version} on the CPU: slow, to test what metal computes", None)]


def _cuda() -> list[DeviceStatus]:
    from rushlight.host import gpus as installed

    gpus = installed.gpus()
    if isinstance(gpus, str):
        return [_missing("cuda", gpus)]
    torch = installed.torch()
    here = ", ".join(gpu.name for gpu in gpus)
    if torch is None:
        return [_missing("cuda", f"{here} is here, but PyTorch is not installed", "pip install 'rushlight[cuda]'")]
    if torch.cuda is None:
        fix = "install a build of PyTorch with CUDA: https://pytorch.org/get-started/locally"
        return [_missing("cuda", f"{here} is here, but PyTorch {torch.version} is a build without CUDA", fix)]
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
    detail = f"PyTorch {torch.version} on the CPU: slow, to test what cuda computes"
    return [DeviceStatus("torch-cpu", True, detail, None)]


def _reference() -> list[DeviceStatus]:
    return [DeviceStatus("reference", True, "NumPy: slow, and what the other devices are compared with", None)]


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
"""How each device is looked for."""

_OPENERS: dict[str, Callable[[str, str, int | None, bool | None], Backend]] = {
    "cpu": _open_cpu,
    "metal": _open_mlx,
    "mlx-cpu": _open_mlx,
    "cuda": _open_torch,
    "torch-cpu": _open_torch,
    "reference": _open_reference,
}
"""How each is opened."""
