"""The timed steps compute the same as `generate`."""

import pytest

import rushlight
from rushlight.bench.bandwidth import WeightReader, matrices
from rushlight.bench.steps import Sequences, random_ids, time_decode, time_prefill


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


def test_batched_decode_equals_solo_generation(model):
    prompts = [random_ids(5, model.config.vocab_size, seed) for seed in range(3)]
    sequences = Sequences(model, 3, 70)
    tokens = [sequences.prefill(prompts)]
    for _ in range(3):
        tokens.append(sequences.step(tokens[-1]))
    solo = [model.generate(prompt, max_tokens=4, ignore_eos=True).ids for prompt in prompts]
    assert [list(sequence) for sequence in zip(*tokens, strict=True)] == solo
    assert sequences.length == 8


def test_prompts_are_the_same_each_time_and_differ_by_seed():
    assert random_ids(8, 4096) == random_ids(8, 4096)
    assert random_ids(8, 4096, 1) != random_ids(8, 4096, 2)
    assert all(0 <= i < 4096 for i in random_ids(1000, 4096))


def test_times_are_positive(model):
    assert time_prefill(model, 4) > 0
    assert time_decode(model, 2, 2) > 0


def test_a_step_reads_every_matrix_and_the_head_once(model):
    config = model.config
    c, inner = config.n_embd, config.n_inner
    expected = config.n_layer * (c * 3 * c + c * c + 2 * c * inner) + config.vocab_size * c
    assert sum(weight.shape[0] * weight.shape[1] for weight in matrices(model)) == expected


def test_numpy_reads_as_many_bytes_as_the_weights(model):
    reader = WeightReader(model)
    assert reader.nbytes == sum(weight.nbytes for weight in matrices(model))
    assert reader.name in {"numpy", "weights"}
    assert reader.time() > 0


def test_a_backend_with_read_reads_every_weight(model, monkeypatch):
    read = []
    monkeypatch.setattr(type(model.module.ops), "read", lambda self, weight: read.append(weight), raising=False)
    reader = WeightReader(model)
    reader.time()
    assert reader.name == "weights"
    assert list(map(id, read)) == list(map(id, matrices(model)))
