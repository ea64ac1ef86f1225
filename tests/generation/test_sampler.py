import numpy as np
import pytest

from rushlight.errors import GenerationError, RequestError
from rushlight.generation import Sampler, SamplingParams
from rushlight.generation.sampler import probabilities

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def choose(logits=LOGITS, prompt_ids=(), position=0, **settings):
    return Sampler(SamplingParams(**settings), len(logits), prompt_ids).choose(np.asarray(logits, np.float32), position)


def kept(logits=LOGITS, **settings):
    """The tokens that can be drawn."""
    return np.flatnonzero(probabilities(np.asarray(logits, np.float32), **settings))


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals():
    assert choose() == 1
    assert choose([0, 5, 5, 1]) == 1


def test_top_k_keeps_the_k_likeliest_and_equals_at_the_edge():
    assert kept(top_k=2).tolist() == [1, 4]
    assert kept([2, 1, 1, 0], top_k=2).tolist() == [0, 1, 2]
    assert kept(top_k=10**9).tolist() == kept(top_k=0).tolist() == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert kept(logits, top_p=0.49).tolist() == [0]
    assert kept(logits, top_p=0.51).tolist() == [0, 1]
    assert kept(logits, top_p=0.79).tolist() == [0, 1]
    assert kept(logits, top_p=0.81).tolist() == [0, 1, 2]
    assert kept(logits, top_p=1e-9).tolist() == [0]
    assert kept(logits, top_p=1).tolist() == [0, 1, 2, 3]


def test_min_p_is_a_share_of_the_likeliest():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert kept(logits, min_p=0.31).tolist() == [0, 1]
    assert kept(logits, min_p=0.29).tolist() == [0, 1, 2]
    assert kept(logits, min_p=1).tolist() == [0]


def test_temperature_sharpens_and_flattens():
    weights = {t: probabilities(LOGITS, temperature=t) for t in (0.5, 1.0, 2.0)}
    for temperature, w in weights.items():
        np.testing.assert_allclose(w, np.exp((LOGITS - 3.0) / temperature), rtol=1e-6)


def test_draws_follow_the_probabilities():
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    sampler = Sampler(SamplingParams(temperature=1, seed=5), 5)
    counts = np.bincount([sampler.choose(LOGITS, position) for position in range(5000)], minlength=5)
    assert np.abs(counts / 5000 - expected).max() < 4 * np.sqrt(0.25 / 5000)


def test_a_draw_depends_on_seed_and_position_alone():
    draws = [choose(temperature=1, seed=9, position=position) for position in range(50)]
    sampler = Sampler(SamplingParams(temperature=1, seed=9), 5)
    assert [sampler.choose(LOGITS, position) for position in reversed(range(50))] == draws[::-1]
    assert draws != [choose(temperature=1, seed=10, position=position) for position in range(50)]


def test_without_a_seed_one_is_drawn_and_told():
    params = SamplingParams(temperature=1)
    first, second = Sampler(params, 5), Sampler(params, 5)
    assert first.seed != second.seed
    again = Sampler(SamplingParams(temperature=1, seed=first.seed), 5)
    assert [first.choose(LOGITS, i) for i in range(30)] == [again.choose(LOGITS, i) for i in range(30)]


def test_the_repetition_penalty_weakens_tokens_of_prompt_and_text():
    assert choose(prompt_ids=[1], repetition_penalty=1.3) == 4
    sampler = Sampler(SamplingParams(repetition_penalty=1.3), 5)
    assert [sampler.choose(LOGITS, i) for i in range(3)] == [1, 4, 1]
    # a negative logit is multiplied, which weakens it too
    assert choose([-1.0, -1.1], prompt_ids=[0], repetition_penalty=1.2) == 1


def test_presence_and_frequency_penalties_count_the_text_but_not_the_prompt():
    assert choose(prompt_ids=[1, 1, 1], presence_penalty=2, frequency_penalty=2) == 1
    once = Sampler(SamplingParams(presence_penalty=0.6), 5)
    assert [once.choose(LOGITS, i) for i in range(4)] == [1, 4, 1, 1]
    each = Sampler(SamplingParams(frequency_penalty=0.6), 5)
    assert [each.choose(LOGITS, i) for i in range(5)] == [1, 4, 1, 2, 4]


def test_logit_bias_is_added():
    assert choose(logit_bias={3: 100}) == 3
    assert choose(logit_bias={1: -100}) == 4
    with pytest.raises(RequestError, match="no such token: 5 "):
        choose(logit_bias={5: 1.0})


def test_the_callers_logits_are_left_alone():
    logits = LOGITS.copy()
    sampler = Sampler(
        SamplingParams(temperature=1, top_k=2, logit_bias={0: 1.0}, repetition_penalty=2.0), 5, barred=np.array([4])
    )
    sampler.choose(logits, 0)
    assert np.array_equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_distribution_are_an_error(temperature, bad):
    with pytest.raises(GenerationError, match="position 7"):
        choose([1.0, bad, 2.0], position=7, temperature=temperature)


@pytest.mark.parametrize("temperature", [0, 1])
def test_all_tokens_masked_is_an_error(temperature):
    sampler = Sampler(SamplingParams(temperature=temperature), 3, barred=np.arange(3))
    with pytest.raises(GenerationError, match="no finite maximum"):
        sampler.choose(np.zeros(3, np.float32), 0)


def test_barred_tokens_are_never_chosen():
    sampler = Sampler(SamplingParams(temperature=2, seed=1), 5, barred=np.array([1, 4]))
    assert {sampler.choose(LOGITS, i) for i in range(200)} == {0, 2, 3}
