"""Available devices, the errors for unavailable ones, and the choice of `auto`."""

import ctypes
import logging
import platform
import subprocess
import sys

import pytest

from rushlight.backends import DEVICES, devices, open_backend
from rushlight.errors import DeviceError, DtypeError
from rushlight.host import gpus as installed
from rushlight.host.gpus import GPU, Torch

H100, T4 = GPU("NVIDIA H100 80GB HBM3", 80 << 30), GPU("Tesla T4", 15 << 30)


@pytest.fixture
def machine(monkeypatch):
    """`machine(...)`: sets the results of the probes, independent of this machine."""

    def machine(*, system="Linux", cpu="x86_64", kernel="", gpus="no NVIDIA driver found", torch=None, mlx=None):
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: cpu)
        monkeypatch.setattr(platform, "version", lambda: kernel)
        monkeypatch.setattr(installed, "gpus", lambda: gpus)
        monkeypatch.setattr(installed, "torch", lambda: torch)
        monkeypatch.setattr(installed, "mlx", lambda: mlx)

    return machine


def refused(device):
    with pytest.raises(DeviceError) as caught:
        open_backend(device)
    return str(caught.value)


MAC = {"system": "Darwin", "cpu": "arm64"}
NO_CUDA_FIX = "install a build of PyTorch with CUDA: https://pytorch.org/get-started/locally"
CUDA_TORCH, CPU_TORCH = Torch("2.13.0+cu130", "13.0"), Torch("2.13.0+cpu", None)


@pytest.mark.parametrize(
    ("device", "there", "why", "next_step"),
    [
        ("metal", {}, "Metal needs a Mac with Apple silicon; this is Linux", "use --device cpu"),
        ("metal", {"system": "Windows"}, "this is Windows", "use --device cpu"),
        ("metal", {"system": "Darwin"}, "this one has an Intel processor", "use --device cpu"),
        (
            "metal",
            {"system": "Darwin", "kernel": "root:xnu-1/RELEASE_ARM64_T6000"},
            "this Python is built for x86_64 and runs translated",
            "install a Python for arm64, then rushlight in it",
        ),
        ("metal", MAC, "MLX is not installed", "pip install 'rushlight[metal]'"),
        ("mlx-cpu", MAC, "on a Mac, MLX runs on the GPU", "use --device metal"),
        ("mlx-cpu", {}, "MLX is not installed, or lacks its CPU library", "pip install 'rushlight[metal]'"),
        ("torch-cpu", {}, "PyTorch is not installed", "pip install 'rushlight[cuda]'"),
        ("cuda", {}, "no NVIDIA driver found", "use --device cpu"),
        ("cuda", {"torch": CUDA_TORCH}, "no NVIDIA driver found", "use --device cpu"),
        ("cuda", {"gpus": (H100,)}, "found NVIDIA H100 80GB HBM3, but PyTorch is not", "pip install 'rushlight[cuda]'"),
        ("cuda", {"gpus": (T4,), "torch": CPU_TORCH}, "is a build without CUDA", NO_CUDA_FIX),
        ("cuda:7", {"gpus": (T4,), "torch": CUDA_TORCH}, "this machine has one GPU, cuda:0", "use --device cuda:0"),
        ("cuda:2", {"gpus": (T4, H100), "torch": CUDA_TORCH}, "has 2 GPUs, cuda:0 to cuda:1", "use --device cuda:0"),
    ],
)
def test_an_unavailable_device_is_an_error_with_the_next_step(machine, device, there, why, next_step):
    machine(**there)
    message = refused(device)
    assert message.startswith(f"device {device} is not available: ")
    assert why in message, message
    assert message.endswith(f"; {next_step}")


def test_every_gpu_is_listed(machine):
    machine(gpus=(H100, T4), torch=CUDA_TORCH)
    lines = {status.name: status for status in devices()}
    assert set(lines) == {*DEVICES, "cuda:1"}
    assert lines["cuda"].detail == "NVIDIA H100 80GB HBM3, 80 GiB, PyTorch 2.13.0+cu130"
    assert lines["cuda:1"].detail == "Tesla T4, 15 GiB, PyTorch 2.13.0+cu130"
    assert lines["cuda"].available


@pytest.mark.parametrize(
    ("there", "fastest"),
    [
        ({}, "cpu"),
        ({"gpus": (H100,)}, "cpu"),
        ({"gpus": (H100,), "torch": CPU_TORCH}, "cpu"),
        ({"gpus": (H100,), "torch": CUDA_TORCH}, "cuda"),
        ({**MAC, "mlx": "0.32.4"}, "metal"),
        ({**MAC, "torch": CPU_TORCH}, "cpu"),
    ],
)
def test_auto_selects_the_fastest_available_device_and_logs_it(machine, monkeypatch, caplog, there, fastest):
    machine(**there)
    opened = []
    openers = dict.fromkeys(DEVICES, lambda *arguments: opened.append(arguments))
    monkeypatch.setattr("rushlight.backends.registry._OPENERS", openers)
    with caplog.at_level(logging.WARNING, "rushlight"):
        open_backend("auto", "f32")
    assert opened == [(fastest, "f32", None, None, False)]
    assert [record.message.partition(" (")[0] for record in caplog.records] == (
        [f"device auto: {fastest}"] if fastest != "cpu" else []
    )


@pytest.mark.parametrize("device", ["tpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:1 ", "cuda:٣", "metal:0", ""])
def test_an_unknown_device_is_never_replaced(device):
    message = refused(device)
    assert f"unknown device {device!r}" in message
    assert message.endswith("use one of: auto, cpu, metal, mlx-cpu, cuda, torch-cpu, reference")


@pytest.mark.parametrize("dtype", ["float31", "F32", ""])
def test_an_unknown_dtype_is_never_replaced(dtype):
    with pytest.raises(DtypeError, match=r"unknown dtype .*auto, f32"):
        open_backend("reference", dtype)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "int8", "int4"])
def test_an_unsupported_dtype_is_never_replaced(dtype):
    with pytest.raises(DtypeError, match=f"does not support dtype {dtype} .*f32"):
        open_backend("reference", dtype)


@pytest.mark.devices
@pytest.mark.parametrize(("device", "dtype"), [("torch-cpu", "int4"), ("torch-cpu", "f64"), ("mlx-cpu", "f64")])
def test_a_dtype_that_the_library_does_not_support_is_never_replaced(device, dtype):
    with pytest.raises(DtypeError, match=f"the {device} backend does not support dtype {dtype} .*bf16"):
        open_backend(device, dtype)


def test_the_number_of_threads_is_checked_even_without_effect(caplog):
    with pytest.raises(DeviceError, match="threads is '0'"):
        open_backend("reference", threads=0)
    open_backend("reference", threads=2)
    assert "--threads has no effect on device reference" in caplog.text


# The probes themselves


def test_the_version_of_pytorch_is_read_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "_folder", lambda package: tmp_path)
    assert installed.torch() is None
    for line, cuda in (("cuda: Optional[str] = None", None), ("cuda: Optional[str] = '13.0'", "13.0"), ("", None)):
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = '6'\n")
        assert installed.torch() == Torch("2.13.0", cuda)


def test_mlx_needs_its_library(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "_folder", lambda package: tmp_path)
    assert installed.mlx() is None
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmlx.so").touch()
    assert installed.mlx()


class Driver:
    """A fake NVIDIA driver with these GPUs."""

    def __init__(self, gpus=(), error=0):
        self.gpus, self.error = gpus, error

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)

    def cuDeviceGet(self, device, index):
        device._obj.value = index

    def cuDeviceGetName(self, name, size, device):
        name.value = self.gpus[device.value].name.encode()

    def cuDeviceTotalMem_v2(self, n_bytes, device):
        n_bytes._obj.value = self.gpus[device.value].memory_bytes


@pytest.fixture
def probe_gpus(monkeypatch):
    """`probe_gpus(driver)`: the GPUs found with this driver; None stands for a machine without a driver."""

    def probe_gpus(driver):
        def load(name):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)
        installed._gpus.cache_clear()
        try:
            return installed._gpus("libcuda.so.1")
        finally:
            installed._gpus.cache_clear()

    return probe_gpus


def test_the_driver_lists_its_gpus(probe_gpus):
    assert probe_gpus(Driver([H100, T4])) == (H100, T4)


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (None, "no NVIDIA driver found (libcuda.so.1)"),
        (Driver(error=100), "CUDA_VISIBLE_DEVICES may hide it"),
        (Driver(error=803), "fails to start (cuInit error 803)"),
        (Driver(), "the NVIDIA driver finds no GPU"),
    ],
)
def test_the_reason_for_a_missing_gpu_is_reported(probe_gpus, driver, why):
    assert why in probe_gpus(driver)


LOADED = """
import sys
from rushlight.backends import devices, open_backend
devices()
open_backend("cpu")
open_backend("auto") if not any(d.available for d in devices() if d.name in {"cuda", "metal"}) else None
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "mlx", "triton"}))
"""


def test_no_library_is_imported_before_its_device_is_opened():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.devices
def test_no_installed_library_is_imported_before_its_device_is_opened():
    assert installed.torch()
    assert installed.mlx()
    test_no_library_is_imported_before_its_device_is_opened()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("float16", "f16"),
        ("fp16", "f16"),
        ("half", "f16"),
        ("torch.float32", "f32"),
        ("bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("q4", "int4"),
        ("Q4_K_M", "int4"),
        ("q8_0", "int8"),
        ("8-bit", "int8"),
        ("double", "f64"),
        ("int44", "int4"),
        ("f61", None),
        ("abacus", None),
    ],
)
def test_an_unknown_dtype_has_a_suggestion(name, meant):
    with pytest.raises(DtypeError) as caught:
        open_backend("cpu", name)
    assert caught.value.remedy.startswith(f"did you mean {meant}? use one of: " if meant else "use one of: ")
