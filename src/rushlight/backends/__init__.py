"""The devices a model can run on: one file each, behind `protocol.Backend`."""

from __future__ import annotations

import logging
import platform
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from rushlight.backends.threads import thread_count
from rushlight.errors import DeviceError, DtypeError

if TYPE_CHECKING:
    from rushlight.backends.protocol import Backend

__all__ = ["DTYPES", "DeviceStatus", "devices", "open_backend"]

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
    """All devices that `--device` names, with what is on this machine."""
    return [_cpu(), _metal(), _cuda(), _reference()]


def open_backend(device: str = "auto", dtype: str = "auto", *, threads: int | None = None) -> Backend:
    """The backend for a device word and a dtype word.

    `auto` takes the fastest device that is there. A device or dtype asked for by name is never replaced by another. On
    the CPU, f64 is computed by the reference backend, and so is everything where the native one was not built.

    Args:
        device: auto, or a word of `devices`.
        dtype: one of DTYPES.
        threads: how many the native CPU backend computes with; None is RUSHLIGHT_NUM_THREADS, or all that it may use.

    Raises:
        DeviceError: the device is unknown, or not on this machine, or there is something wrong with the number of
            threads; says what to do.
        DtypeError: the dtype is unknown, or the device does not compute in it.
    """
    statuses = {status.name: status for status in devices()}
    if device != "auto" and device not in statuses:
        raise DeviceError(f"there is no device {device!r}", remedy=f"use one of: auto, {', '.join(statuses)}")
    if dtype not in DTYPES:
        raise DtypeError(f"there is no dtype {dtype!r}", remedy=f"use one of: {', '.join(DTYPES)}")
    status = statuses["cpu" if device == "auto" else device]
    if not status.available:
        raise DeviceError(f"device {device} is not available: {status.detail}", remedy=status.install)

    if status.name == "cpu" and dtype != "f64" and _native_problem() is None:
        from rushlight.backends.cpu import CPUBackend

        return CPUBackend(dtype, threads=threads)
    if status.name == "cpu" and dtype != "f64":
        _say_that_it_is_slow()

    from rushlight.backends.reference import ReferenceBackend

    if threads is not None:
        thread_count(threads)
        _log.warning("the reference backend leaves the number of threads to NumPy, whatever --threads says")
    return ReferenceBackend("f32" if dtype == "auto" else dtype)


@cache
def _native_problem() -> str | None:
    """Why the native extension cannot be used, or None if it can."""
    try:
        from rushlight.backends import _native  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


@cache  # once is enough
def _say_that_it_is_slow() -> None:
    _log.warning("computing with NumPy, slowly: the native backend was not built (%s)", _native_problem())


def _cpu() -> DeviceStatus:
    problem = _native_problem()
    if problem is None:
        from rushlight.backends import _native

        return DeviceStatus("cpu", True, f"native kernels, {_native.instruction_sets()[0]}", None)
    return DeviceStatus("cpu", True, "NumPy, slowly", "install a C++ compiler, then rushlight again")


def _reference() -> DeviceStatus:
    return DeviceStatus("reference", True, "NumPy: slow, and what the other devices are compared with", None)


def _metal() -> DeviceStatus:
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    detail = "this version has no Metal backend yet" if apple else "Metal needs a Mac with Apple silicon"
    return DeviceStatus("metal", False, detail, "use --device cpu")


def _cuda() -> DeviceStatus:
    return DeviceStatus("cuda", False, "this version has no CUDA backend yet", "use --device cpu")
