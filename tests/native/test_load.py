"""Weights that threads read from a file have the bits of weights that are packed from memory."""

import numpy as np
import pytest

from rushlight.backends import _native

SHAPES = [(2100, 608), (45, 70), (32, 32), (7, 3), (64, 1100)]
"""Rows and columns: more than the memory that one thread fills at a time, partial tiles, and one tile."""

ITEMS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}


def stored(values, dtype):
    """Values as a file has them."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values.astype(ITEMS[dtype])


def as_float32(data):
    return (data.astype(np.uint32) << 16).view(np.float32) if data.dtype == np.uint16 else data.astype(np.float32)


@pytest.mark.parametrize("dtype", ITEMS)
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "int8", "int4"])
def test_loaded_weights_are_those_packed_from_memory(device, fmt, dtype, tmp_path):
    rng = np.random.default_rng(1)
    data = [stored(rng.standard_normal(shape, np.float32), dtype) for shape in SHAPES]
    path = tmp_path / "weights"
    path.write_bytes(b"".join(each.tobytes() for each in data))
    expected = []
    for each in data:
        matrix = as_float32(each)
        for values in (matrix, np.ascontiguousarray(matrix.T)):
            packed = device.weight(fmt, *values.shape[::-1])
            assert device.pack(packed, values.view(np.uint8).reshape(-1), "F32", values.shape[1], False, 0)
            expected.append(device.unpack(packed))
            if fmt == "f32":
                assert np.array_equal(expected[-1], values)

    for hurried in (False, True):
        weights, loads, offset = [], [], 0
        if hurried:
            device.hurry()
        with path.open("rb") as file:
            for each in data:
                for rows_are_inputs in (False, True):
                    n_out, n_in = each.shape[::-1] if rows_are_inputs else each.shape
                    weights.append(device.weight(fmt, n_in, n_out))
                    loads.append(_native.Load(weights[-1], file.fileno(), offset, dtype, rows_are_inputs))
                offset += each.nbytes
            assert set(device.load(loads)) == {_native.LoadProblem.NONE}
        for weight, values in zip(weights, expected, strict=True):
            assert np.array_equal(device.unpack(weight), values)
