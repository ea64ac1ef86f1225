"""The CPU backend under models: parity with transformers, bit identity of batched and chunked runs, and settings."""

import json
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from native_helpers import DTYPES, ISAS, ArrayTensor, random
from safetensors.numpy import load_file, save_file

import rushlight
from rushlight import backends
from rushlight.backends import open_backend, registry
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk, KVShape
from rushlight.backends.cpu import CPUBackend
from rushlight.backends.protocol import Role
from rushlight.backends.reference import ReferenceBackend
from rushlight.checkpoint import open_checkpoint
from rushlight.errors import DeviceError, DtypeError, GenerationError, NonFiniteError
from rushlight.generation import Context, LanguageModel
from rushlight.models.gpt2 import GPT2, GPT2Config
from rushlight.nn import bind

FIXTURES = Path(__file__).parents[1] / "fixtures" / "gpt2"
NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())

TOLERANCES = {"auto": 4e-6, "f32": 4e-6, "f16": 5e-3, "bf16": 3e-2, "int8": 0.12, "int4": 0.9}
"""Relative to the largest logit, against float64: two to four times the observed error. f32 and auto have the error of
float32; in the others weights are rounded, to which these models with large weights in small groups are sensitive."""

ROUNDED = {"f16": 2e-3, "bf16": 1e-2}
"""The same for `auto` on checkpoints of these dtypes: keys and values are rounded to f16, and activations to bf16 where
the processor multiplies bf16."""


def load(name, ops):
    """The fixture's model on a backend, and its config."""
    folder = FIXTURES / name
    config = GPT2Config.from_json(json.loads((folder / "config.json").read_text()))
    model = GPT2(config)
    with open_checkpoint(folder) as checkpoint:
        bind(model, checkpoint, ops, rules=GPT2.rules, tie=config.tie_word_embeddings, title=name)
    return model, config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_logits_equal_those_of_transformers(isa, name, dtype):
    ops = CPUBackend(dtype, threads=2, isa=isa)
    model, config = load(name, ops)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    ids = expected["prompt_ids"].tolist()
    logits = Context(LanguageModel.of(model, ops, config), len(ids)).feed(ids, all_logits=True)
    tolerance = ROUNDED.get(ops.dtype_label, TOLERANCES["auto"]) if dtype == "auto" else TOLERANCES[dtype]
    assert np.abs(logits - expected["logits_f64"]).max() <= tolerance * np.abs(expected["logits_f64"]).max()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_output_equals_that_of_transformers(isa, name):
    ops = CPUBackend("f32", threads=2, isa=isa)  # the recorded greedy path
    model, config = load(name, ops)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    prompt, text = expected["prompt_ids"].tolist(), expected["greedy_ids"].tolist()
    logits = Context(LanguageModel.of(model, ops, config), len(prompt) + len(text)).feed(
        prompt + text[:-1], all_logits=True
    )
    assert logits[len(prompt) - 1 :].argmax(1).tolist() == text


@pytest.mark.parametrize("threads", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_solo_batched_chunked_and_cached_runs_are_bit_identical(isa, requested, threads):
    ops = CPUBackend(requested, threads=threads, isa=isa)
    model, config = load("long_prompt", ops)
    ids = load_file(FIXTURES / "long_prompt" / "expected.safetensors")["prompt_ids"].tolist()
    solo_ops = CPUBackend(requested, threads=1, isa=isa)
    solo_model, _ = load("long_prompt", solo_ops)
    solo = Context(LanguageModel.of(solo_model, solo_ops, config), len(ids)).feed(ids, all_logits=True)

    for chunk_rows in (1, 3, 64, 100):
        chunked = Context(LanguageModel.of(model, ops, config), len(ids)).feed(
            ids, all_logits=True, chunk_rows=chunk_rows
        )
        assert np.array_equal(chunked, solo)

    cache = ops.kv_cache(config.kv_shape, 8)
    other = list(reversed(ids))
    model(Batch.of([Chunk(other[:70], 0, [7, 1])], cache))
    batch = Batch.of([Chunk(ids, 0, [4, 0, 6], True), Chunk(other[70:], 70, [7, 1, 3])], cache)
    assert np.array_equal(ops.to_numpy(model(batch))[: len(ids)], solo)


def test_auto_keeps_the_dtype_of_the_checkpoint():
    for name, dtype in (("gelu_new", "f32"), ("quick_gelu_f16", "f16"), ("gelu_fast_bf16", "bf16")):
        ops = CPUBackend()
        load(name, ops)
        assert ops.dtype_label == dtype


class OfZeros(ArrayTensor):
    """A matrix of zeros of another dtype."""

    def __init__(self, dtype):
        super().__init__(np.zeros((40, 40)))
        self.dtype = dtype

    def read_into(self, raw, start):
        raw[:] = 0


@pytest.mark.parametrize(
    ("dtype", "checkpoint", "kv_dtype"),
    [
        ("auto", ["F64"], "f32"),
        ("auto", ["F32"], "f32"),
        ("auto", ["F16"], "f16"),
        ("auto", ["BF16"], "f16"),
        ("auto", ["BF16", "F32", "BF16"], "f32"),
        ("auto", ["F16", "BF16"], "f16"),
        ("f32", ["BF16"], "f32"),
        *((dtype, ["F32"], "f16") for dtype in ("f16", "bf16", "int8", "int4")),
    ],
)
def test_the_dtype_and_size_of_keys_and_values_follow_the_weights(dtype, checkpoint, kv_dtype):
    ops = CPUBackend(dtype)
    for word in checkpoint:
        ops.load_weight(OfZeros(word), Role.CONV1D)
    assert ops.kv_dtype == kv_dtype
    for shape in (KVShape(2, 3, 64), KVShape(1, 5, 20)):
        cache = ops.kv_cache(shape, 7)
        assert cache.format == kv_dtype
        assert cache.nbytes == 7 * ops.kv_block_bytes(shape)
        padded = -(-shape.head_dim // 16) * 16
        n_values = shape.n_layer * shape.n_kv_head * (shape.head_dim + padded) * BLOCK_SIZE
        assert ops.kv_block_bytes(shape) == n_values * (4 if kv_dtype == "f32" else 2)


@pytest.mark.parametrize("which", ["keys", "values"])
@pytest.mark.parametrize("beyond", [1e5, -1e5])
def test_values_beyond_f16_raise_instead_of_generating(tmp_path, which, beyond):
    """A bias is float32 whatever the dtype of the weights, so that it can make keys and values arbitrarily large."""
    folder = shutil.copytree(FIXTURES / "gelu_new", tmp_path / "far")
    tensors = load_file(folder / "model.safetensors")
    bias = tensors[next(name for name in tensors if name.endswith("h.0.attn.c_attn.bias"))]
    third = len(bias) // 3
    bias[third + 3 if which == "keys" else 2 * third + 3] = beyond
    save_file(tensors, folder / "model.safetensors")
    prompt = [1, 2, 3]
    for dtype in ("f16", "bf16", "int8", "int4"):
        model = rushlight.load(folder, dtype=dtype)
        for speculate in (None, True):
            with pytest.raises(GenerationError, match=r"position 3 are not finite.*or compute in f32"):
                model.generate(prompt, max_tokens=5, speculate=speculate)
        with pytest.raises(GenerationError, match=r"position 1 are not finite.*or compute in f32"):
            model.score(prompt[:1], prompt[1:])
        with pytest.raises(GenerationError, match=r"are not finite.*or compute in f32"):
            model.beam_search(prompt, n_beams=2, max_tokens=5)
        assert np.isnan(model.logits(prompt)).all()
    assert len(rushlight.load(folder, dtype="f32").generate(prompt, max_tokens=5, ignore_eos=True).ids) == 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_requested_dtype_is_used(dtype):
    ops = CPUBackend(dtype)
    assert (ops.dtype_label, ops.device) == (dtype, "cpu")
    assert ops.load_weight(ArrayTensor(random(40, 40)), Role.CONV1D).format == dtype


def test_non_finite_weights_are_named():
    with pytest.raises(NonFiniteError, match="test: a weight is not a finite f16 number"):
        CPUBackend("f16").load_weight(ArrayTensor(np.full((3, 3), 1e6)), Role.LINEAR)
    with pytest.raises(NonFiniteError, match="test: a weight is not a finite f32 number"):
        CPUBackend().load_weight(ArrayTensor([0.0, np.nan]), Role.VECTOR)


def test_the_environment_selects_the_instruction_set(monkeypatch):
    for isa in ISAS:
        monkeypatch.setenv("RUSHLIGHT_ISA", isa)
        assert CPUBackend()._native.isa == isa
    monkeypatch.delenv("RUSHLIGHT_ISA")
    assert CPUBackend()._native.isa == ISAS[0]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 "])
def test_an_unknown_instruction_set_is_an_error(monkeypatch, name):
    monkeypatch.setenv("RUSHLIGHT_ISA", name)
    with pytest.raises(DeviceError, match=f"unknown instruction set '{name}'.*RUSHLIGHT_ISA.*portable"):
        open_backend("cpu")


def test_an_unsupported_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setattr(backends._native, "instruction_sets", lambda: ["another"])
    monkeypatch.setenv("RUSHLIGHT_ISA", ISAS[0])
    with pytest.raises(DeviceError, match=rf"this processor does not have {ISAS[0]}, .* \(expected another\)"):
        open_backend("cpu")


def test_each_device_opens_its_backend():
    assert isinstance(open_backend("reference"), ReferenceBackend)
    assert isinstance(open_backend("cpu"), CPUBackend)
    assert open_backend("cpu", "f64").dtype_label == "f64"
    with pytest.raises(DtypeError):
        open_backend("reference", "int8")


def test_without_the_extension_the_reference_backend_is_used_with_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "rushlight.backends._native", None)
    monkeypatch.delattr(backends, "_native")
    for cached in (registry._native_problem, registry._warn_that_numpy_is_slow):
        cached.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "rushlight"):
            assert isinstance(open_backend("cpu"), ReferenceBackend)
            assert isinstance(open_backend("auto"), ReferenceBackend)
        (record,) = caplog.records
        assert record.message.startswith("computing with NumPy, which is slow: ")
        assert backends.devices()[0].install
        with pytest.raises(DtypeError):
            open_backend("cpu", "int4")
    finally:
        for cached in (registry._native_problem, registry._warn_that_numpy_is_slow):
            cached.cache_clear()


def product(ops):
    """A product that is divided over several threads."""
    weight = ops.load_weight(ArrayTensor(random(512, 2048)), Role.CONV1D)
    return np.asarray(ops.linear(ops._native.array(random(4, 512, seed=1)), weight, None))


def _in_a_child(ops, queue):
    queue.put(product(ops))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_workers():
    ops = CPUBackend(threads=3)
    expected = product(ops)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_in_a_child, args=(ops, queue)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        assert np.array_equal(queue.get(timeout=30), expected)
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert np.array_equal(product(ops), expected)


def test_concurrent_callers_get_the_same_bits():
    ops = CPUBackend(threads=2)
    expected = product(ops)
    results = []
    threads = [threading.Thread(target=lambda: results.append(product(ops))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result, expected) for result in results)


def test_idle_workers_use_no_cpu_time():
    ops = CPUBackend(threads=3)
    product(ops)
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05
