"""Every architecture equals transformers, and its bits do not depend on chunks, threads, batches or speculation."""

import numpy as np
import pytest
from architecture_fixtures import NAMES, TOLERANCE, Fixture

from rushlight.generation import Context
from rushlight.models import ARCHITECTURES


@pytest.fixture(params=NAMES)
def fixture(request):
    return Fixture(request.param)


def test_every_architecture_has_a_fixture():
    with_own_fixtures = {"gpt2"}
    assert {Fixture(name).config["model_type"] for name in NAMES} == {*ARCHITECTURES} - with_own_fixtures


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_logits_equal_transformers(fixture, tmp_path, device):
    assert fixture.error(fixture.load(tmp_path, device=device, dtype="f32")) < TOLERANCE


def test_greedy_output_equals_transformers(fixture, tmp_path):
    model = fixture.load(tmp_path, dtype="f32")
    result = model.generate(fixture.prompt, max_tokens=len(fixture.greedy), ignore_eos=True)
    assert result.ids == fixture.greedy


OF_EACH_TYPE = {Fixture(name).config["model_type"]: name for name in reversed(NAMES)}.values()
"""The first fixture of each architecture."""


@pytest.mark.parametrize(
    ("fixture", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name in OF_EACH_TYPE and dtype == "f32" else pytest.mark.slow)
        for name in NAMES
        for dtype in ("f32", "f16", "bf16", "int8", "int4")
    ],
    indirect=["fixture"],
)
def test_bits_do_not_depend_on_chunks_threads_or_neighbours(fixture, tmp_path, dtype):
    model = fixture.load(tmp_path, dtype=dtype, threads=1)
    ids = fixture.prompt + fixture.greedy
    logits = Context(model.language_model, len(ids)).feed(ids, all_logits=True, chunk_rows=256)
    for chunk_rows in (1, 13):
        chunks = Context(model.language_model, len(ids)).feed(ids, all_logits=True, chunk_rows=chunk_rows)
        assert np.array_equal(logits, chunks)
    assert np.array_equal(logits, fixture.load(tmp_path, dtype=dtype, threads=2).logits(ids))
    prompts = [ids[:n] for n in (70, 5, 64, 33)]
    solo = [model.generate(prompt, max_tokens=20, ignore_eos=True).ids for prompt in prompts]
    together = dict(model.generate_many(prompts, max_tokens=20, ignore_eos=True))
    assert [together[i].ids for i in range(len(prompts))] == solo
    drafted = model.generate(ids, max_tokens=20, ignore_eos=True, speculate=True).ids
    assert drafted == model.generate(ids, max_tokens=20, ignore_eos=True, speculate=False).ids
