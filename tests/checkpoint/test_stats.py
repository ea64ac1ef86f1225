"""Statistics of tensors, compared with NumPy's over the entire tensor."""

import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from rushlight.checkpoint import open_checkpoint, stats
from rushlight.checkpoint.stats import TensorStats, measure, tensor_stats
from rushlight.errors import TruncatedError


def stats_of(path, array):
    save_file({"a": array}, path)
    with open_checkpoint(path) as checkpoint:
        return tensor_stats(checkpoint["a"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_statistics_equal_those_of_numpy(path, monkeypatch, piece, dtype):
    monkeypatch.setattr(stats, "CHUNK_ELEMENTS", piece)
    array = (np.random.default_rng(1).normal(50, 20, (10, 20)).clip(0, 100)).astype(dtype)
    found = stats_of(path, array)
    assert (found.min, found.max) == (array.min(), array.max())
    assert found.mean == pytest.approx(array.mean(dtype=np.float64), rel=1e-12)
    assert found.std == pytest.approx(array.std(dtype=np.float64), rel=1e-12)
    assert (found.n_nan, found.n_inf) == (0, 0)


def test_bf16_is_decoded(path):
    values = np.float32([1.5, -2.25, 384.0, np.nan, np.inf])
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    header = b'{"a":{"dtype":"BF16","shape":[5],"data_offsets":[0,10]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    with open_checkpoint(path) as checkpoint:
        found = tensor_stats(checkpoint["a"])
    assert (found.min, found.max, found.n_nan, found.n_inf) == (-2.25, 384.0, 1, 1)
    assert found.mean == np.float64([1.5, -2.25, 384.0]).mean()


@pytest.mark.parametrize("piece", [2, 100])
def test_nan_and_inf_are_counted_and_excluded(path, monkeypatch, piece):
    monkeypatch.setattr(stats, "CHUNK_ELEMENTS", piece)
    found = stats_of(path, np.float32([np.nan, np.nan, np.inf, 1, -np.inf, 3, np.nan]))
    assert found == TensorStats(1.0, 3.0, 2.0, 1.0, 3, 2)


@pytest.mark.parametrize("array", [np.zeros(0, np.float32), np.full(3, np.nan, np.float32)])
def test_no_finite_values(path, array):
    assert stats_of(path, array) == TensorStats(None, None, None, None, array.size, 0)


def test_a_small_spread_about_a_large_mean(path):
    """The mean of the squares minus the square of the mean would have no correct digit."""
    array = 1e8 + np.random.default_rng(2).normal(0, 1e-3, 100_000)
    assert stats_of(path, array).std == pytest.approx(1e-3, rel=0.02)


def test_large_integers_are_exact(path):
    found = stats_of(path, np.array([2**64 - 1, 2**63 + 1], np.uint64))
    assert (found.min, found.max) == (2**63 + 1, 2**64 - 1)


def test_sums_beyond_float64_are_none(path):
    found = stats_of(path, np.float64([1e308, 1e308, -1e308]))
    assert (found.min, found.max, found.std) == (-1e308, 1e308, None)


def test_a_bool_tensor_counts_ones(path):
    assert stats_of(path, np.array([True, False, True, True])) == TensorStats(0, 1, 0.75, 0.75**0.5 / 2, 0, 0)


def test_progress_and_dtypes_without_statistics(path):
    save_file({"a": np.zeros(5, np.complex64), "b": np.zeros(3, np.float32)}, path)
    seen = []
    with open_checkpoint(path) as checkpoint:
        assert list(measure(checkpoint.values(), seen.append)) == ["b"]
    assert sum(seen) == 52


def test_memory_is_bounded(path):
    save_file({"a": np.ones(16 << 20, np.float32)}, path)
    with open_checkpoint(path) as checkpoint:
        tracemalloc.start()
        tensor_stats(checkpoint["a"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 << 20


def test_a_file_truncated_meanwhile(path):
    save_file({"a": np.ones(1000, np.float32)}, path)
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(b"")
        with pytest.raises(TruncatedError):
            tensor_stats(checkpoint["a"])
