"""The log-softmax that logprobs, scores, beams, the lens and verify share."""

import tracemalloc

import numpy as np
import pytest

from rushlight.generation.sampling.logprobs import largest, log_softmax, logprobs_of, softmax, token_logprob


def rows(n=5, n_vocab=1000, scale=10.0):
    return (np.random.default_rng(3).standard_normal((n, n_vocab)) * scale).astype(np.float32)


def test_probabilities_sum_to_one_and_agree_with_logprobs():
    logits = rows()
    np.testing.assert_allclose(softmax(logits).sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), softmax(logits), rtol=1e-12)
    assert log_softmax(logits).dtype == softmax(logits).dtype == np.float64


def test_a_row_is_bit_identical_solo_and_in_a_batch():
    logits = rows(n_vocab=50_257)
    together, ids = log_softmax(logits), [7, 0, 50_256, 3, 11]
    for row, logprobs, token in zip(logits, together, ids, strict=True):
        assert np.array_equal(log_softmax(row), logprobs)
        assert token_logprob(row, token, 0).logprob == logprobs[token]
    assert np.array_equal(logprobs_of(logits, ids), together[np.arange(5), ids])


def test_large_logits_do_not_overflow():
    assert log_softmax(np.array([1e30, 0.0], np.float32)).tolist() == [0.0, pytest.approx(-1e30, rel=1e-6)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_row_is_nan_and_does_not_affect_others(value):
    logits = rows(n=3)
    logits[1, 5] = value
    for logprobs in (log_softmax(logits), logprobs_of(logits, [1, 1, 1])[:, None], softmax(logits)):
        assert np.isfinite(logprobs).all(axis=1).tolist() == [True, False, True]


def test_arguments_are_not_modified():
    logits = rows().astype(np.float64)
    before = logits.copy()
    for function in (log_softmax, softmax, lambda x: logprobs_of(x, [0] * 5)):
        function(logits)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("n_vocab", [1, 63, 64, 65, 640, 50_257])
def test_the_largest_values_come_first_and_equals_in_their_order(n_vocab):
    values = np.random.default_rng(n_vocab).integers(0, max(2, n_vocab // 4), n_vocab).astype(np.float32)
    expected = np.argsort(-values, kind="stable")
    for n in (0, 1, 5, 64, n_vocab, n_vocab + 1):
        assert largest(values, n).tolist() == expected[:n].tolist()


def test_a_large_vocabulary_takes_no_double_for_each_token():
    logits = rows(n=1, n_vocab=262_144)[0]
    tracemalloc.start()
    token_logprob(logits, 5, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits.nbytes
