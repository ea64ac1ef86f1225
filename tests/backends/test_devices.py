import pytest

from rushlight.backends import devices, open_backend
from rushlight.errors import DeviceError, DtypeError


def test_auto_takes_a_device_that_is_there():
    backend = open_backend()
    available = {status.name for status in devices() if status.available}
    assert backend.device in available
    assert backend.dtype == "f32"


@pytest.mark.parametrize("device", ["metal", "cuda"])
def test_a_device_that_is_not_there_is_an_error_with_the_next_step(device):
    status = next(status for status in devices() if status.name == device)
    assert not status.available
    with pytest.raises(DeviceError, match=f"device {device} is not available: .*use --device cpu"):
        open_backend(device)


def test_an_unknown_device_is_never_replaced():
    with pytest.raises(DeviceError, match=r"no device 'tpu'.*auto, cpu, metal, cuda"):
        open_backend("tpu")


@pytest.mark.parametrize("dtype", ["float31", "F32", ""])
def test_an_unknown_dtype_is_never_replaced(dtype):
    with pytest.raises(DtypeError, match=r"no dtype .*auto, f32"):
        open_backend("reference", dtype)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "int8", "int4"])
def test_a_dtype_the_device_does_not_compute_in_is_never_replaced(dtype):
    with pytest.raises(DtypeError, match=f"does not compute in {dtype} .*f32"):
        open_backend("reference", dtype)


def test_a_number_of_threads_is_checked_where_it_does_not_matter_too(caplog):
    with pytest.raises(DeviceError, match="threads is '0'"):
        open_backend("reference", threads=0)
    open_backend("reference", threads=2)
    assert "leaves the number of threads to NumPy" in caplog.text
