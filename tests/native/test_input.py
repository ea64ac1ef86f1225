"""Invalid arguments, which no backend passes, raise errors instead of reading or writing out of bounds."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from rushlight.backends import _native
from rushlight.backends.batch import Batch, Chunk
from rushlight.backends.protocol import NotRecordableError

HUGE = 2**31 - 65


@pytest.fixture(scope="module")
def device():
    return _native.Device(2, _native.instruction_sets()[0])


def raw(n_bytes):
    return np.zeros(n_bytes, np.uint8)


def batch(cache, ids=(1, 2), position=0):
    return Batch.of([Chunk(list(ids), position, [0])], cache)


def sampling_row(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5, adjustments=None, allowed=None):
    return (temperature, top_k, top_p, min_p, uniform, adjustments, allowed)


@pytest.mark.parametrize(
    ("shape", "n_bytes", "columns", "first"),
    [
        ((64, 96), 4, 0, 0),
        ((64, 96), 4, -4, 0),
        ((64, 96), 64 * 96 * 4, 64, 2**63 - 32),
        ((64, 96), 64 * 96 * 4, 64, 32),
        ((64, 96), 64 * 96 * 4, 64, -32),
        ((64, 96), 64 * 96 * 4 - 1, 64, 0),
        ((64, 96), 64 * 97 * 4, 64, 0),
    ],
)
def test_rows_outside_the_weight_are_refused(device, shape, n_bytes, columns, first):
    with pytest.raises(ValueError, match=r"whole number of rows|not a part of the weight"):
        device.pack(device.weight("f32", *shape), raw(n_bytes), "F32", columns, False, first)


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 1), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_a_weight_of_invalid_size_is_refused(device, shape):
    with pytest.raises(ValueError, match=r"inputs and .* outputs: expected 1 to"):
        device.weight("f32", *shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d.weight("f32", HUGE, HUGE),
        lambda d: d.weight("int4", HUGE, HUGE),
        lambda d: d.kv_cache("f16", 65536, 1024, 64, 2**25),
        lambda d: d.kv_cache("f32", HUGE, HUGE, HUGE, HUGE),
    ],
)
def test_a_size_beyond_the_address_space_raises_memory_error(device, make):
    with pytest.raises(MemoryError):
        make(device)


def test_an_arena_is_usable_after_it_could_not_grow(device):
    weight = device.weight("f32", 64, 64)
    with pytest.raises(MemoryError):
        device.weight("f32", 2**20, 2**24)
    values = np.arange(64 * 64, dtype=np.float32)
    small = [device.weight("f32", 64, 64) for _ in range(3000)]  # more than fit in the rest of the chunk
    for one in (weight, *small):
        assert device.pack(one, values.view(np.uint8), "F32", 64, False, 0)


@pytest.mark.parametrize("n", [-1, -(2**40), 2**40])
def test_a_vector_of_invalid_length_is_refused(device, n):
    with pytest.raises(ValueError, match=r"a vector of length .*: expected 0 to"):
        device.vector(n)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_small_model_reserves_little_address_space():
    def addresses():
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096

    before = addresses()
    other = _native.Device(1, _native.instruction_sets()[0])
    kept = [other.weight("f32", 256, 256) for _ in range(20)]
    assert addresses() - before < 32 << 20
    assert len(kept) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        (1.0,),
        sampling_row()[:6],
        (*sampling_row(), None),
        sampling_row(adjustments=(np.array([1], np.int32),)),
        sampling_row(adjustments=(np.array([4], np.int32), np.ones(1), np.zeros(1))),
        sampling_row(adjustments=(np.array([-1], np.int32), np.ones(1), np.zeros(1))),
        sampling_row(allowed=np.ones(3, bool)),
        sampling_row(temperature=-1.0, top_p=0.5),
        sampling_row(temperature=np.nan),
        sampling_row(temperature=np.inf),
        sampling_row(top_k=-1),
        sampling_row(top_p=0.0),
        sampling_row(top_p=1.5),
        sampling_row(min_p=2.0),
        sampling_row(uniform=1.0),
        sampling_row(uniform=np.nan),
    ],
)
def test_an_invalid_sampling_row_is_refused(device, wrong):
    logits = device.array(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"SamplingRow of 7 fields|out of range|beyond the logits|allowed"):
        device.sample(logits, [wrong])


def test_sampling_rows_that_a_sequence_makes_on_access(device):
    class Rows:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i == 2:
                raise IndexError
            adjustments = (np.array([3], np.int32), np.ones(1), np.full(1, 50.0))
            return sampling_row(0.0, adjustments=adjustments, allowed=np.array([False, i == 1, False, i == 0]))

    logits = device.array(np.zeros((2, 4), np.float32))
    assert device.sample(logits, Rows()) == [3, 1]


def test_any_byte_except_0_allows_a_token(device):
    allowed = np.array([0, 7, 0, 255], np.uint8).view(bool)
    logits = device.array(np.array([[9, 1, 8, 2]], np.float32))
    assert device.sample(logits, [sampling_row(0.0, allowed=allowed)]) == [3]


def test_a_plan_runs_only_after_it_was_finished(device):
    cache = device.kv_cache("f32", 1, 1, 16, 2)
    step = batch(cache)
    table = device.weight("f32", 32, 4)
    device.pack(table, raw(32 * 4 * 4), "F32", 32, False, 0)

    def forward(plan):
        return device.embedding(plan.ids, table)

    def fails(plan):
        device.embedding(plan.ids, table)
        raise LookupError

    new = device.plan(step)
    with pytest.raises(ValueError, match="only after it was finished"):
        new.run(step)
    with pytest.raises(ValueError, match="only after it was recorded"):
        new.finish(device.array(np.zeros((2, 32), np.float32)))
    with pytest.raises(LookupError):
        new.record(fails)
    with pytest.raises(ValueError, match="only after it was finished"):
        new.run(step)
    with pytest.raises(ValueError, match="recorded only once"):
        new.record(forward)

    unfit = device.plan(step)
    unfit.record(forward)
    with pytest.raises(NotRecordableError, match="result is not that of the last operation"):
        unfit.finish(device.array(np.zeros((2, 32), np.float32)))
    with pytest.raises(ValueError, match="only after it was finished"):
        unfit.run(step)

    plan = device.plan(step)
    out = plan.record(forward)
    assert plan.finish(out).shape == (2, 32)
    with pytest.raises(ValueError, match="only after it was recorded"):
        plan.finish(out)
    assert plan.run(step).shape == (2, 32)
    x = device.array(np.zeros((2, 16), np.float32))
    with pytest.raises(ValueError, match="only available while the plan is recorded"):
        device.attention(x, x, x, plan.rows, plan.cache, 0, 1, 1.0)


def test_a_batch_that_makes_its_arrays_on_access(device):
    class Fresh:
        ids = property(lambda _: np.array([1, 2], np.int32))
        positions = property(lambda _: np.array([0, 1], np.int32))
        row_starts = property(lambda _: np.array([0, 2], np.int32))
        block_tables = property(lambda _: ((np.array([0], np.int32),),))
        logit_rows = property(lambda _: np.array([1], np.int32))
        cache = property(lambda _: device.kv_cache("f32", 1, 1, 16, 2))

    plan = device.plan(Fresh())
    gc.collect()
    assert [n_blocks for _, n_blocks in plan.cache.groups] == [2]
    assert plan.rows is not None


@pytest.mark.parametrize(
    ("row_starts", "n_rows", "tables"),
    [
        ([0, 7, 100, 5], 5, [[0]] * 3),
        ([0, 2**30, 5], 5, [[0]] * 2),
        ([], 0, np.empty((0, 0), np.int32)),
        ([0, 2], 2, [[5]]),
        ([0, 2], 2, [[-1]]),
        ([0, 2], 3, [[0]]),
        ([0, 65], 65, [[0]]),
    ],
)
def test_inconsistent_rows_are_refused(device, row_starts, n_rows, tables):
    cache, of_group = device.kv_cache("f32", 1, 1, 4, 2), [np.array(table, np.int32) for table in tables]
    with pytest.raises(ValueError, match=r"inconsistent|has no rows|not in the cache|beyond the sequence"):
        device.rows(np.array(row_starts, np.int32), np.arange(n_rows, dtype=np.int32), [of_group], cache)


@pytest.mark.parametrize("offset", [-1, 2**63 - 1])
def test_an_invalid_file_offset_is_refused(device, offset):
    with pytest.raises(ValueError, match="offset"):
        _native.Load(device.vector(4), 0, offset, "F32")
    with pytest.raises(ValueError, match="offset"):
        _native.Load(device.weight("f32", 4, 4), 0, offset, "F32", False)


def test_a_file_that_cannot_be_read(device):
    assert device.load([_native.Load(device.vector(4), -1, 0, "F32")]) == [_native.LoadProblem.NOT_READ]


@pytest.mark.parametrize("name", ["Array", "Vector", "Weight", "KVCache", "Rows", "Ids", "Plan", "Load"])
@pytest.mark.filterwarnings("ignore:nanobind:RuntimeWarning")
def test_an_object_not_created_by_the_device_raises(device, name):
    made = getattr(_native, name)
    empty = made.__new__(made)
    with pytest.raises((TypeError, BufferError)):
        memoryview(empty)
    for attribute in ("shape", "nbytes", "n_blocks", "ids", "rows", "cache"):
        if hasattr(made, attribute):
            with pytest.raises(TypeError):
                getattr(empty, attribute)
    with pytest.raises(TypeError):
        device.exp(empty)


@pytest.mark.parametrize("columns", [32, 40])
def test_a_buffer_has_the_requested_layout(device, columns):
    values = np.arange(3 * columns, dtype=np.float32).reshape(3, columns)
    for array, expected in [
        (device.array(values), values),
        (device.split(device.array(values), 2)[1], values[:, columns // 2 :]),
        (device.take(device.array(values), np.array([1], np.int32)), values[1:2]),
    ]:
        assert np.array_equal(np.asarray(array), expected)
        assert memoryview(array).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0, 0)])
def test_arrays_without_elements(device, shape):
    x = device.array(np.zeros(shape, np.float32))
    none = np.empty(0, np.int32)
    assert (x + x).shape == (x * x).shape == device.exp(x).shape == shape
    assert device.take(x, none).shape == (0, shape[1])
    assert device.unfold(x, none.reshape(0, 2)).shape == (0, 2 * shape[1])
    assert device.activation(x, "gelu_tanh").shape == shape
    assert device.vector(np.empty(0, np.float32)).shape == (0,)
    with pytest.raises(ValueError, match="split evenly"):
        device.split(x, 2**31 - 1)


def test_unfolding_no_rows_is_refused(device):
    with pytest.raises(ValueError, match="unfold needs at least one row to put side by side"):
        device.unfold(device.array(np.zeros((2, 4), np.float32)), np.empty((3, 0), np.int32))
