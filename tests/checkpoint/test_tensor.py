"""Reading tensors."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from rushlight.checkpoint import open_checkpoint
from rushlight.checkpoint.dtypes import DTYPES
from rushlight.errors import CheckpointError, FormatError


@pytest.fixture
def opened(tmp_path):
    """A function that opens a file of tensors, given as {name: (dtype, shape, bytes)}."""
    checkpoints = []

    def open_tensors(tensors: dict[str, tuple[str, list[int], bytes]], padding: int = 0):
        header, data = {}, b""
        for name, (dtype, shape, raw) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode() + b" " * padding
        path = tmp_path / f"{len(checkpoints)}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        checkpoints.append(open_checkpoint(path))
        return checkpoints[-1]

    yield open_tensors
    for checkpoint in checkpoints:
        checkpoint.close()


READ_AS = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "BF16": "uint16",
    "F8_E4M3": "uint8",
    "F8_E4M3FNUZ": "uint8",
    "F8_E5M2": "uint8",
    "F8_E5M2FNUZ": "uint8",
    "F8_E8M0": "uint8",
}


def test_every_dtype_is_in_the_table_below():
    assert READ_AS.keys() == DTYPES.keys()


@pytest.mark.parametrize("dtype", READ_AS)
def test_a_tensor_is_read_as_stored(opened, dtype):
    itemsize = np.dtype(READ_AS[dtype]).itemsize
    assert DTYPES[dtype].itemsize == itemsize
    raw = bytes(6 * itemsize) if dtype == "BOOL" else bytes(range(100, 100 + 6 * itemsize))
    tensor = opened({"first": ("U8", [3], b"abc"), "t": (dtype, [2, 3], raw)})["t"]
    array = tensor.read()
    assert array.dtype == READ_AS[dtype]
    assert array.shape == (2, 3)
    assert array.tobytes() == raw
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert (tensor.dtype, tensor.shape, tensor.nbytes, tensor.n_elements) == (dtype, (2, 3), len(raw), 6)


@pytest.mark.parametrize("padding", range(8))
def test_data_can_start_at_any_byte(opened, padding):
    values = np.arange(1000, dtype="<f4")
    checkpoint = opened({"odd": ("U8", [3], b"abc"), "t": ("F32", [1000], values.tobytes())}, padding)
    array = checkpoint["t"].read()
    assert array.tolist() == values.tolist()
    assert array.flags.aligned


def test_a_tensor_without_dimensions_or_without_elements_is_read(opened):
    checkpoint = opened({"none": ("F32", [0, 5], b""), "scalar": ("F32", [], struct.pack("<f", 1.5))})
    assert checkpoint["none"].read().shape == (0, 5)
    assert checkpoint["none"].float32().shape == (0, 5)
    assert checkpoint["none"].n_elements == 0
    assert checkpoint["scalar"].read().shape == ()
    assert checkpoint["scalar"].float32().item() == 1.5
    assert checkpoint["scalar"].n_elements == 1


def test_a_bool_that_is_neither_0_nor_1_is_refused(opened):
    checkpoint = opened({"mask": ("BOOL", [3], b"\0\1\2")})
    with pytest.raises(FormatError, match=r"mask: a BOOL tensor contains a byte other than 0 and 1"):
        checkpoint["mask"].read()


def test_two_reads_do_not_share_memory(opened):
    tensor = opened({"t": ("F32", [2], bytes(8))})["t"]
    tensor.read()[0] = 1
    assert tensor.read().tolist() == [0, 0]


# To float32


def bf16_to_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def test_every_bf16_is_decoded_exactly(opened):
    bits = np.arange(1 << 16, dtype="<u2")
    decoded = opened({"t": ("BF16", [256, 256], bits.tobytes())})["t"].float32()
    assert decoded.dtype == np.float32
    assert decoded.shape == (256, 256)
    for b in [0x0000, 0x8000, 0x0001, 0x3F80, 0xBF80, 0x4049, 0x7F7F, 0x7F80, 0xFF80]:
        assert decoded.flat[b] == bf16_to_float(b)
    assert (decoded.view("<u4") == bits.reshape(256, 256).astype("<u4") << 16).all()


def test_every_f16_is_decoded_exactly(opened):
    values = np.arange(1 << 16, dtype="<u2").view("<f2")
    decoded = opened({"t": ("F16", [1 << 16], values.tobytes())})["t"].float32()
    assert decoded.dtype == np.float32
    expected = [struct.unpack("<e", struct.pack("<H", bits))[0] for bits in range(1 << 16)]
    assert np.array_equal(decoded, np.array(expected, np.float32), equal_nan=True)
    assert decoded[1] == 2.0**-24


def test_f32_is_returned_as_stored(opened):
    bits = np.array([0, 1, 0x80000000, 0x3F800001, 0x7F800000, 0x7FC00001, 0x7FA00001], "<u4")
    decoded = opened({"t": ("F32", [7], bits.tobytes())})["t"].float32()
    assert decoded.view("<u4").tolist() == bits.tolist()


def test_f64_is_rounded_to_nearest(opened):
    values = np.array([1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e-300, -np.inf, np.nan, 3.4028235e38])
    decoded = opened({"t": ("F64", [6], values.tobytes())})["t"].float32()
    assert decoded.dtype == np.float32
    assert decoded[:4].tolist() == [1.0, 1 + 2.0**-22, 0.0, -np.inf]
    assert np.isnan(decoded[4])


def test_an_f64_beyond_float32_is_an_error(opened):
    checkpoint = opened({"t": ("F64", [2], np.array([1.0, 1e39]).tobytes())})
    with pytest.raises(CheckpointError, match="t: an F64 value is too large for float32"):
        checkpoint["t"].float32()


@pytest.mark.parametrize("dtype", [name for name in READ_AS if name not in {"F32", "F16", "BF16", "F64"}])
def test_only_floats_are_decoded(opened, dtype):
    checkpoint = opened({"t": (dtype, [1], bytes(DTYPES[dtype].itemsize))})
    with pytest.raises(CheckpointError, match=r"expected F32, F16, BF16, F64, found") as caught:
        checkpoint["t"].float32()
    assert caught.value.found == dtype
    assert caught.value.tensor == "t"


# Comparing


def test_same_data_compares_every_byte(opened, monkeypatch):
    monkeypatch.setattr("rushlight.checkpoint.checkpoint._COMPARE_BYTES", 64)
    raw = bytes(range(200))
    tensors = {"t": ("U8", [200], raw), "same": ("U8", [200], raw)}
    for place in (0, 63, 64, 127, 199):
        tensors[f"differs at {place}"] = ("U8", [200], raw[:place] + b"\xff" + raw[place + 1 :])
    checkpoint, other = opened(tensors), opened(tensors)
    for name in tensors:
        assert checkpoint["t"].same_data(checkpoint[name]) == (name in {"t", "same"})
        assert checkpoint["t"].same_data(other[name]) == (name in {"t", "same"})


def test_same_data_distinguishes_dtype_shape_and_the_bits_of_nan_and_zero(opened):
    nan = struct.pack("<f", np.nan)
    checkpoint = opened(
        {
            "nan": ("F32", [1], nan),
            "nan too": ("F32", [1], nan),
            "bits": ("U32", [1], nan),
            "scalar": ("F32", [], nan),
            "0": ("F32", [1], bytes(4)),
            "-0": ("F32", [1], struct.pack("<f", -0.0)),
            "none": ("F32", [0], b""),
            "none too": ("F32", [0], b""),
        }
    )
    assert checkpoint["nan"].same_data(checkpoint["nan too"])
    assert checkpoint["none"].same_data(checkpoint["none too"])
    for name in ("bits", "scalar", "0", "none"):
        assert not checkpoint["nan"].same_data(checkpoint[name])
    assert not checkpoint["0"].same_data(checkpoint["-0"])


def test_same_data_stops_at_the_first_difference_in_bounded_memory(opened, monkeypatch):
    size = 1 << 20
    monkeypatch.setattr("rushlight.checkpoint.checkpoint._COMPARE_BYTES", 1 << 12)
    checkpoint = opened({"a": ("U8", [size], bytes(size)), "b": ("U8", [size], b"\1" + bytes(size - 1))})
    n_bytes = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: n_bytes.append(len(buffers[0])) or preadv(fd, buffers, at)
    )
    assert not checkpoint["a"].same_data(checkpoint["b"])
    assert sum(n_bytes) == 2 << 12


# The mapping


def test_a_checkpoint_is_a_mapping_in_the_order_of_the_data(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"z": np.zeros(1, "<f4"), "a": np.zeros(2, "<f8"), "m": np.zeros(3, "u1")}, {"format": "np"}))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["a", "z", "m"]
        assert len(checkpoint) == 3
        assert "z" in checkpoint
        assert "b" not in checkpoint
        assert checkpoint.get("b") is None
        with pytest.raises(KeyError):
            checkpoint["b"]
        assert checkpoint.metadata == {"format": "np"}
        assert checkpoint.files == (path,)
        assert checkpoint["z"].file == path
        assert checkpoint["z"].name == "z"
        assert repr(checkpoint["a"]) == "Tensor('a', F64, [2])"
        assert repr(checkpoint) == f"<Checkpoint {str(path)!r}: 3 tensors>"
