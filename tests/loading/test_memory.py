"""The memory that a model needs, and what is refused before its weights are read."""

import pytest
from architecture_fixtures import Fixture

import rushlight
from rushlight.backends.batch import BLOCK_SIZE
from rushlight.backends.cpu import CPUBackend
from rushlight.checkpoint import open_checkpoint
from rushlight.errors import MemoryLimitError, RequestError
from rushlight.loading.footprint import footprint


def need_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return footprint(checkpoint)


def test_one_context_takes_what_the_cache_holds_for_it(tmp_path):
    for name in ("llama", "gemma3_text"):
        folder = Fixture(name).write(tmp_path / name)
        model = rushlight.load(folder, device="cpu", dtype="f32", context=599)
        pool = model._default.engine.pool
        held = [n * g.n_layer * BLOCK_SIZE for n, g in zip(pool.n_blocks_for(599), pool.groups, strict=True)]
        need = need_of(folder)._replace(context_length=599)
        numbers = 2 * model.config.heads.n_kv * model.config.heads.dim * sum(held)
        assert [need.context_bytes(dtype) for dtype in ("f32", "bf16", "int4")] == [
            4 * numbers,
            2 * numbers,
            2 * numbers,
        ]


@pytest.fixture
def folder(tmp_path):
    return Fixture("llama").write(tmp_path / "llama")


def with_memory(monkeypatch, n_bytes):
    monkeypatch.setattr(CPUBackend, "available_bytes", lambda _: n_bytes)


@pytest.mark.parametrize(
    ("share", "remedy"),
    [(0.6, r"use --dtype bf16 \(0\.0 MB\), which fits"), (0.01, "use a smaller model; even in int4 this one takes")],
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
    context = need_of(folder)._replace(context_length=512).context_bytes("f32")
    with_memory(monkeypatch, weights + context)  # half of what is left is for keys and values
    with pytest.raises(
        MemoryLimitError, match=r"one context of 512 tokens .*; use --context 256 or less, or weights"
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
