"""Mapped files: weights where they lie, and files that are cut meanwhile."""

import os
import subprocess
import sys

import numpy as np
import pytest
from native_helpers import FORMATS, _native, random


def packed(device, form, n_in=45, n_out=70):
    weight = device.weight(form, n_in, n_out)
    matrix = random(n_out, n_in)
    assert device.pack(weight, matrix.view(np.uint8).reshape(-1), "F32", n_in, False, 0)
    return weight


def mapping(path, data):
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return _native.Mapping(fd, len(data))
    finally:
        os.close(fd)


@pytest.mark.parametrize("form", FORMATS)
def test_a_mapped_weight_computes_the_same_bits(device, tmp_path, form):
    weight = packed(device, form)
    found = device.weight(form, 45, 70, mapping(tmp_path / "file", bytes(128) + weight.tobytes()), 128)
    assert (found.shape, found.format, found.tobytes()) == (weight.shape, form, weight.tobytes())
    for n in (1, 3, 40):
        x = random(n, 45, seed=n)
        outputs = [np.asarray(device.linear(device.array(x), each, None)) for each in (weight, found)]
        np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("form", FORMATS)
def test_panels_are_read_as_they_are(device, tmp_path, form):
    weight = packed(device, form)
    path = tmp_path / "file"
    path.write_bytes(bytes(3) + weight.tobytes())
    found = device.weight(form, 45, 70)
    with path.open("rb") as file:
        assert device.load([_native.Load(found, file.fileno(), 3)]) == [_native.LoadProblem.NONE]
        assert found.tobytes() == weight.tobytes()
        assert device.load([_native.Load(found, file.fileno(), 4)]) == [_native.LoadProblem.NOT_READ]


def test_many_panels_are_read_by_several_threads(tmp_path):
    device = _native.Device(3, "portable")
    weight = packed(device, "f32", 500, 9000)
    path = tmp_path / "file"
    path.write_bytes(weight.tobytes())
    found = device.weight("f32", 500, 9000)
    with path.open("rb") as file:
        assert device.load([_native.Load(found, file.fileno(), 0)]) == [_native.LoadProblem.NONE]
    assert found.tobytes() == weight.tobytes()


@pytest.mark.parametrize("offset", [-64, 63, 64, 1 << 62])
def test_a_weight_beyond_the_file_is_refused(tmp_path, offset):
    device = _native.Device(1, "portable")
    data = packed(device, "int4").tobytes()
    whole = mapping(tmp_path / "file", data)
    device.weight("int4", 45, 70, whole, 0)
    with pytest.raises(ValueError, match="is not the beginning of"):
        device.weight("int4", 45, 70, whole, offset)


def test_nothing_writes_to_a_mapped_weight(tmp_path):
    device = _native.Device(1, "portable")
    weight = device.weight("f32", 45, 70, mapping(tmp_path / "file", packed(device, "f32").tobytes()), 0)
    raw = np.zeros(45 * 70 * 4, np.uint8)
    with pytest.raises(ValueError, match="cannot be written to"):
        device.pack(weight, raw, "F32", 45, False, 0)
    for arguments in [("F32", False), ()]:
        with pytest.raises(ValueError, match="cannot be written to"):
            _native.Load(weight, 0, 0, *arguments)


def test_what_cannot_be_mapped_is_an_os_error(tmp_path):
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="No such device"):
            _native.Mapping(reader, 100)
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.Mapping(-1, 100)
    with pytest.raises(ValueError, match="expected at least 1"):
        _native.Mapping(0, 0)


def test_the_descriptor_is_the_file_and_closed_with_it(tmp_path):
    whole = mapping(tmp_path / "file", b"0123")
    fd = whole.fd
    assert os.pread(fd, 4, 0) == b"0123"
    weight = whole
    del whole, weight
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


PROGRAM = """
import faulthandler, os, signal, sys
import numpy as np
from rushlight.backends import _native

def cut(name="file", n=70000):
    device = _native.Device(2, "portable")
    weight = device.weight("f32", 32, n)
    with open(name, "wb") as file:
        file.write(weight.tobytes())
    fd = os.open(name, os.O_RDONLY)
    mapping = _native.Mapping(fd, weight.nbytes)
    mapped = device.weight("f32", 32, n, mapping, 0)
    other = _native.Mapping(os.open(sys.executable, os.O_RDONLY), 4096)
    def read():
        os.truncate(name, 100)
        return device.read(mapped), mapping.failed, other.failed
    return read

def die():
    import mmap
    with open("own", "wb+") as file:
        file.truncate(100000)
        own = mmap.mmap(file.fileno(), 0)
        file.truncate(0)
        own[50000]
"""


def run(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("before", ["", "faulthandler.enable()", "faulthandler.enable(); faulthandler.disable()"])
def test_a_file_that_is_cut_reads_as_zeros(tmp_path, before):
    assert run(f"{before}\nread = cut()\nprint(read())", tmp_path) == (0, "(0, True, False)\n", "")


def test_a_removed_handler_is_installed_again(tmp_path):
    program = "faulthandler.enable(); read = cut(); faulthandler.disable(); _native.Mapping.guard(); print(read())"
    assert run(program, tmp_path) == (0, "(0, True, False)\n", "")


def test_a_faulthandler_that_is_enabled_later_reports_and_the_program_continues(tmp_path):
    code, out, err = run("read = cut(); faulthandler.enable(); print(read()); print(cut('other')())", tmp_path)
    assert (code, out) == (0, "(0, True, False)\n" * 2)
    assert "Fatal Python error: Bus error" in err


@pytest.mark.parametrize(
    "before", ["read = cut()", "faulthandler.enable(); read = cut()", "read = cut(); faulthandler.enable()"]
)
def test_a_bus_error_elsewhere_still_ends_the_process(tmp_path, before):
    code, out, err = run(f"{before}\ndie()\nprint('alive')", tmp_path)
    assert (code, out) == (-7, "")
    assert ("Fatal Python error: Bus error" in err) == ("faulthandler" in before)


def test_a_handler_of_python_still_gets_a_signal_that_is_sent(tmp_path):
    program = "signal.signal(signal.SIGBUS, lambda *_: print('got it')); read = cut()\n"
    program += "import subprocess; subprocess.run(['kill', '-BUS', str(os.getpid())]); print(read())"
    assert run(program, tmp_path) == (0, "got it\n(0, True, False)\n", "")


def test_a_signal_that_another_process_sends_ends_the_process(tmp_path):
    program = "read = cut(); import subprocess; subprocess.run(['kill', '-BUS', str(os.getpid())]); print('alive')"
    assert run(program, tmp_path)[:2] == (-7, "")


def test_ranges_are_used_again(tmp_path):
    program = "for i in range(300): assert cut(f'file{i % 2}', 1000)() == (0, True, False), i"
    assert run(program, tmp_path) == (0, "", "")
