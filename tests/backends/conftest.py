"""The devices that the shared suite runs on, with their tolerances. Add one line here for a new device."""

import os
from dataclasses import dataclass

import numpy as np
import pytest

from rushlight.backends import devices, open_backend

AVAILABLE = {status.name for status in devices() if status.available}
if "cuda" not in AVAILABLE:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # run the kernels on the CPU; read when Triton is imported
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns if it is unset


@dataclass(frozen=True)
class Subject:
    """A device at a dtype.

    Attributes:
        ops_error: the largest error of an operation, relative to the largest value of its float64 result, which is
            computed from weights and inputs before they are rounded to the dtype.
        logits_error: the same for the logits of a model. The fixtures are small and steep, with std 0.2 and more: they
            magnify what a trained model would hide.
        same_bits: whether a row's results are bit-identical whatever else is in the batch.
    """

    device: str
    dtype: str
    ops_error: float
    logits_error: float
    same_bits: bool = False

    def __str__(self):
        return f"{self.device}-{self.dtype}"

    def open(self):
        return open_backend(self.device, self.dtype)

    def same(self, found, expected):
        """Whether logits are equal: bit for bit if the device promises that, otherwise within twice the error."""
        if self.same_bits:
            return np.array_equal(found, expected)
        return np.abs(found - expected).max() <= 2 * self.logits_error * np.abs(expected).max()


TORCH = [("f32", 4e-6, 4e-6), ("f16", 2e-3, 1e-2), ("bf16", 2e-2, 8e-2), ("int8", 3e-2, 0.12)]
MLX = [("f32", 1e-5, 6e-6), ("f16", 2e-3, 1e-2), ("bf16", 2e-2, 8e-2), ("int8", 3e-2, 0.2), ("int4", 0.3, 0.9)]

ALWAYS = [
    Subject("reference", "f32", 4e-6, 4e-6, same_bits=True),
    Subject("reference", "f64", 1e-14, 3e-12, same_bits=True),  # transformers' gelu_fast has √(2/π) to ten digits only
    Subject("cpu", "f32", 4e-6, 4e-6, same_bits=True),
    Subject("cpu", "f16", 6e-3, 1e-2, same_bits=True),
    Subject("cpu", "bf16", 5e-2, 8e-2, same_bits=True),
    Subject("cpu", "int8", 3e-2, 0.12, same_bits=True),
]
WITH_LIBRARIES = [
    *(Subject("torch-cpu", *row) for row in TORCH),
    *(Subject("mlx-cpu", *row) for row in MLX),
    *(Subject("cuda", *row) for row in TORCH if "cuda" in AVAILABLE),
    *(Subject("metal", *row) for row in MLX if "metal" in AVAILABLE),
]
"""mlx-cpu and torch-cpu are listed even if their libraries are missing: the tests marked `devices` need them."""

SUBJECTS = [*ALWAYS, *(pytest.param(subject, marks=pytest.mark.devices) for subject in WITH_LIBRARIES)]


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request):
    return request.param


@pytest.fixture
def ops(subject):
    return subject.open()


@pytest.fixture
def close(subject, ops):
    """Asserts that a result equals the expected one, within the tolerance of the device and dtype."""

    def close(result, expected):
        result = ops.to_numpy(result)
        assert result.shape == expected.shape
        assert result.dtype == (np.float64 if subject.dtype == "f64" else np.float32)
        assert np.abs(result - expected).max() <= subject.ops_error * np.abs(expected).max()

    return close
