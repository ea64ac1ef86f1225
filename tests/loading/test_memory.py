"""The memory that a model needs, and what is refused before its weights are read."""

import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.backends.batch import BLOCK_SIZE, KVShape
from rushlight.backends.cpu import CPUBackend
from rushlight.errors import MemoryLimitError, RequestError
from rushlight.loading.memory import memory_needed
from rushlight.models import TextConfig
from rushlight.nn import Role, Slot


class Config(TextConfig):
    """A config of these sizes only."""

    context_length = 8192
    kv_shape = KVShape(4, 2, 64)

    def __init__(self):
        pass


SLOTS = [Slot((1000, 64), Role.TABLE), Slot((64, 64), Role.LINEAR), Slot((64,), Role.VECTOR)]


@pytest.mark.parametrize(
    ("dtype", "table", "matrix", "number"),
    [("f32", 4, 4, 4), ("bf16", 2, 2, 2), ("int8", 1.0625, 1.0625, 2), ("int4", 1.0625, 0.625, 2), ("auto", 2, 2, 2)],
)
def test_the_need_is_that_of_the_weights_and_of_one_context(dtype, table, matrix, number):
    need = memory_needed(Config(), SLOTS, dtype, context=1000)
    assert need.weights == int(64_000 * table + 64 * 64 * matrix + 64 * 4)
    assert need.kv == 16 * BLOCK_SIZE * 4 * 2 * 2 * 64 * number
    assert (need.context, need.total) == (1000, need.weights + need.kv)
    assert memory_needed(Config(), SLOTS, dtype).context == 8192


class WindowedConfig(Config):
    """The same with windows in three layers."""

    kv_shape = KVShape(4, 2, 64, (None, 512, 512, 512))


def test_layers_with_a_window_need_their_window_and_one_step():
    blocks = 8192 // BLOCK_SIZE + 3 * (-(-(512 + 254) // BLOCK_SIZE) + 1)
    assert memory_needed(WindowedConfig(), [], "bf16").kv == blocks * BLOCK_SIZE * 2 * 2 * 64 * 2


@pytest.fixture
def folder(tmp_path):
    return Fixture("llama").write(tmp_path / "llama")


def with_memory(monkeypatch, n_bytes):
    monkeypatch.setattr(CPUBackend, "available_bytes", lambda _: n_bytes)


@pytest.mark.parametrize(
    ("share", "remedy"),
    [(0.6, r"use --dtype bf16 \(0 MB\), which fits"), (0.01, "use a smaller model; in int4 it takes 0 MB")],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder, monkeypatch, share, remedy):
    model = rushlight.load(folder, device="cpu", dtype="f32")
    need = 4 * model.n_parameters
    with_memory(monkeypatch, int(need * share))
    monkeypatch.setattr(CPUBackend, "load_weight", lambda *_: pytest.fail("a weight is read"))
    with pytest.raises(MemoryLimitError, match=r"the model does not fit in memory: .* needed, .* available") as error:
        rushlight.load(folder, device="cpu", dtype="f32")
    assert (error.value.need_bytes, error.value.have_bytes) == (need, int(need * share))
    error.match(remedy)


def test_the_context_is_limited(folder):
    model = rushlight.load(folder, context=70)
    assert model.context_length == 70
    assert len(model.generate([5] * 60, max_tokens=100, ignore_eos=True).ids) == 10
    with pytest.raises(RequestError, match=r"the prompt has 71 tokens, and the model's context is 70"):
        model.generate([5] * 71)
    longest = model.config.max_context_length
    assert rushlight.load(folder).context_length == longest
    expected = rf"a context of {longest + 1} tokens is longer than the model's, {longest}; use --context {longest}"
    with pytest.raises(RequestError, match=expected):
        rushlight.load(folder, context=longest + 1)


@pytest.mark.parametrize("context", [0, -1, True, 2.5, "64"])
def test_a_context_that_is_no_number_of_tokens_is_refused(folder, context):
    with pytest.raises(RequestError, match="context must be an integer of at least 1"):
        rushlight.load(folder, context=context)


def test_a_requested_context_must_fit(folder, monkeypatch):
    weights = 4 * rushlight.load(folder, device="cpu", dtype="f32").n_parameters
    context = memory_needed(rushlight.load(folder, context=512).config, [], "f32").kv
    with_memory(monkeypatch, weights + context)  # half of what is left is for keys and values
    with pytest.raises(
        MemoryLimitError, match=r"one context of 512 positions .*; use --context 256 or less, or weights"
    ) as error:
        rushlight.load(folder, device="cpu", dtype="f32", context=512)
    assert (error.value.need_bytes, error.value.have_bytes) == (context, context // 2)
    rushlight.load(folder, device="cpu", dtype="f32", context=256)
    rushlight.load(folder, device="cpu", dtype="f32", context=512, kv_bytes=context)
    rushlight.load(folder, device="cpu", dtype="f32")  # a shorter request may fit


def test_a_request_that_does_not_fit_is_refused_with_need_and_have(folder, monkeypatch):
    model = rushlight.load(folder, device="cpu", dtype="f32")
    block_bytes = model.language_model.kv_block_bytes
    with_memory(monkeypatch, 2 * 5 * block_bytes)
    assert len(model.generate([5] * 100, max_tokens=20, ignore_eos=True).ids) == 20
    with pytest.raises(MemoryLimitError, match=r"keys and values of 420 tokens .*--context") as error:
        model.generate([5] * 400, max_tokens=20)
    assert (error.value.need_bytes, error.value.have_bytes) == (7 * block_bytes, 5 * block_bytes)
