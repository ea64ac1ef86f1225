import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushlight.backends import open_backend
from rushlight.backends.reference import probabilities
from rushlight.errors import RequestError
from rushlight.generation import Sampler, SamplingParams

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def take(sampler, position, logits=LOGITS):
    """Samples a token, and adds it to the output."""
    [token] = open_backend("reference").sample(np.array(logits, np.float32)[None], [sampler.row(position)])
    sampler.accept_token(token)
    return token


def sample(logits=LOGITS, prompt_ids=(), position=0, **settings):
    return take(Sampler(SamplingParams(**settings), len(logits), prompt_ids), position, logits)


def kept(logits=LOGITS, **settings):
    """Returns the tokens that can be sampled."""
    return np.flatnonzero(probabilities(np.asarray(logits, np.float32), **settings))


def test_temperature_0_takes_the_most_likely_token_and_the_first_of_a_tie():
    assert sample() == 1
    assert sample([0, 5, 5, 1]) == 1


def test_top_k_keeps_the_k_most_likely_tokens_and_ties_with_the_last():
    assert kept(top_k=2).tolist() == [1, 4]
    assert kept([2, 1, 1, 0], top_k=2).tolist() == [0, 1, 2]
    assert kept(top_k=10**9).tolist() == kept(top_k=0).tolist() == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert kept(logits, top_p=0.49).tolist() == [0]
    assert kept(logits, top_p=0.51).tolist() == [0, 1]
    assert kept(logits, top_p=0.79).tolist() == [0, 1]
    assert kept(logits, top_p=0.81).tolist() == [0, 1, 2]
    assert kept(logits, top_p=1e-9).tolist() == [0]
    assert kept(logits, top_p=1).tolist() == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_most_likely_token():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert kept(logits, min_p=0.31).tolist() == [0, 1]
    assert kept(logits, min_p=0.29).tolist() == [0, 1, 2]
    assert kept(logits, min_p=1).tolist() == [0]


def test_temperature_sharpens_and_flattens():
    weights = {t: probabilities(LOGITS, temperature=t) for t in (0.5, 1.0, 2.0)}
    for temperature, w in weights.items():
        np.testing.assert_allclose(w, np.exp((LOGITS - 3.0) / temperature), rtol=1e-6)


def test_tokens_are_sampled_according_to_their_probabilities():
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    sampler = Sampler(SamplingParams(temperature=1, seed=5), 5)
    counts = np.bincount([take(sampler, position) for position in range(5000)], minlength=5)
    assert np.abs(counts / 5000 - expected).max() < 4 * np.sqrt(0.25 / 5000)


def test_a_token_depends_only_on_seed_and_position():
    tokens = [sample(temperature=1, seed=9, position=position) for position in range(50)]
    sampler = Sampler(SamplingParams(temperature=1, seed=9), 5)
    assert [take(sampler, position) for position in reversed(range(50))] == tokens[::-1]
    assert tokens != [sample(temperature=1, seed=10, position=position) for position in range(50)]


def test_without_a_seed_each_sampler_gets_a_new_one_that_reproduces_its_output():
    params = SamplingParams(temperature=1)
    first, second = Sampler(params, 5), Sampler(params, 5)
    assert first.seed != second.seed
    again = Sampler(SamplingParams(temperature=1, seed=first.seed), 5)
    assert [take(first, i) for i in range(30)] == [take(again, i) for i in range(30)]


def test_the_repetition_penalty_counts_prompt_and_output():
    assert sample(prompt_ids=[1], repetition_penalty=1.3) == 4
    sampler = Sampler(SamplingParams(repetition_penalty=1.3), 5)
    assert [take(sampler, i) for i in range(3)] == [1, 4, 1]
    # a negative logit is multiplied, which weakens it too
    assert sample([-1.0, -1.1], prompt_ids=[0], repetition_penalty=1.2) == 1


def test_presence_and_frequency_penalties_count_the_output_only():
    assert sample(prompt_ids=[1, 1, 1], presence_penalty=2, frequency_penalty=2) == 1
    once = Sampler(SamplingParams(presence_penalty=0.6), 5)
    assert [take(once, i) for i in range(4)] == [1, 4, 1, 1]
    each = Sampler(SamplingParams(frequency_penalty=0.6), 5)
    assert [take(each, i) for i in range(5)] == [1, 4, 1, 2, 4]


def test_logit_bias_is_added():
    assert sample(logit_bias={3: 100}) == 3
    assert sample(logit_bias={1: -100}) == 4
    with pytest.raises(RequestError, match="no such token: 5 "):
        sample(logit_bias={5: 1.0})


def test_penalties_and_biases_of_one_token_add_up():
    sampler = Sampler(
        SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={1: 4.0, 3: 9}),
        5,
        [1, 4],
    )
    for token in (1, 1, 0):
        sampler.accept_token(token)
    ids, factors, offsets = sampler.row(9).adjustments
    changes = {int(i): (f, o) for i, f, o in zip(ids, factors, offsets, strict=True)}
    assert changes == {1: (2.0, 4 - 0.5 - 0.5), 3: (1.0, 9.0), 4: (2.0, 0.0), 0: (2.0, -0.75)}


def test_a_sampler_is_stateful_only_with_penalties_or_a_constraint():
    for settings in ({}, {"temperature": 1.0, "seed": 1}, {"logit_bias": {2: 1.0}}):
        sampler = Sampler(SamplingParams(**settings), 5, [1, 2])
        before = sampler.row(3)
        sampler.accept_token(4)
        assert not sampler.is_stateful
        assert sampler.row(3) == before
    assert Sampler(SamplingParams(presence_penalty=0.1), 5).is_stateful


@given(st.lists(st.integers(0, 99), max_size=300), st.lists(st.integers(0, 99), max_size=300))
def test_penalties_count_outputs_of_any_length(prompt, output):
    sampler = Sampler(SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5), 100, prompt)
    for token in output:
        sampler.accept_token(token)
    changes = sampler.row(0).adjustments
    found = {} if changes is None else dict(zip(changes.ids.tolist(), changes.offsets.tolist(), strict=True))
    assert found == {token: -0.5 * output.count(token) for token in {*prompt, *output}}
    assert changes is None or (changes.factors == 1.5).all()


class Odd:
    """A constraint: every token is odd, and none occurs twice."""

    def __init__(self):
        self.taken = []

    def allowed(self):
        return np.array([i % 2 == 1 and i not in self.taken for i in range(5)])

    def accept_token(self, token):
        self.taken.append(token)


def test_a_constraint_is_combined_with_the_allowed_tokens():
    sampler = Sampler(SamplingParams(), 5, allowed=np.array([True, True, True, True, False]), constraint=Odd())
    assert sampler.is_stateful
    assert [take(sampler, i) for i in range(2)] == [1, 3]
    assert not sampler.row(2).allowed.any()


def test_unused_ids_are_never_sampled():
    allowed = np.array([True, False, True, True, False])
    sampler = Sampler(SamplingParams(temperature=2, seed=1), 5, allowed=allowed)
    assert {take(sampler, i) for i in range(200)} == {0, 2, 3}
    assert sampler.row(0).allowed is allowed  # shared by all sequences of a model
