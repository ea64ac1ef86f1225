"""Log-likelihood and perplexity with the embedded model."""

import math

import numpy as np
import pytest

import rushlight
from rushlight.backends.batch import PREFILL_ROWS
from rushlight.errors import ContextLengthError, MemoryLimitError, RequestError, TokenizerError
from rushlight.generation.runner import SCORED_ROWS
from rushlight.generation.scoring import MAX_JOBS, MAX_LANES

TEXT = "Once upon a time there was a king who had three sons, and the youngest of them was called Boots. " * 6


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


def logprobs(model, ids):
    """Returns log p of each token but the first, from all logits at once."""
    logits = model.logits(ids[:-1]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(axis=1))


def test_a_score_is_the_logprob_of_each_token(model):
    prompt, continuation = "Once upon a time", " there was a king who had three sons"
    score = model.score(prompt, continuation)
    ids = model.tokenizer.encode(prompt + continuation)
    assert score.prompt_ids + score.ids == ids
    np.testing.assert_allclose(score.logprobs, logprobs(model, ids)[-len(score.ids) :], rtol=1e-12)
    assert score.logprob == math.fsum(score.logprobs)
    assert not score.is_greedy
    assert model.score(score.prompt_ids, score.ids) == score


def test_the_output_of_greedy_decoding_is_greedy(model):
    ids = model.tokenizer.encode("Once upon a time")
    greedy = model.generate(ids, max_tokens=5).ids
    assert model.score(ids, greedy).is_greedy
    assert not model.score(ids, [*greedy[:-1], greedy[-1] ^ 1]).is_greedy


def test_trailing_spaces_move_to_the_continuation(model):
    assert model.score("Once upon a ", "time") == model.score("Once upon a", " time")
    assert model.score("  ", "time") == model.score("", "  time")


def test_a_token_may_span_the_boundary(model):
    """Prompt and continuation are then encoded separately: the joined tokens do not begin with the prompt's."""
    encode = model.tokenizer.encode
    prompt, continuation = "Once upon a ti", "me there was"
    assert encode(prompt) + encode(continuation) != encode(prompt + continuation)
    score = model.score(prompt, continuation)
    assert score.prompt_ids == encode(prompt)
    assert score.ids == encode(continuation)


def test_an_empty_prompt_is_the_end_of_text_token(model):
    score = model.score("", "Once upon a time")
    assert score.prompt_ids == [0]
    assert score == model.score([0], model.tokenizer.encode("Once upon a time"))


def test_many_scores_equal_single_scores(model):
    pairs = [("The king", " rode"), ("The king", " slept"), ("The king rode", " home"), ("A", " dog"), (TEXT, " And")]
    pairs += [([5] * 200, [6] * 100), ([5] * 200, [7])]
    assert list(model.score_many(pairs)) == [model.score(*pair) for pair in pairs]


def steps_of(model, monkeypatch):
    """A list to which each later step appends the rows of its sequences."""
    steps = []
    forward = model.forward

    def counted(batch):
        steps.append(np.diff(batch.row_starts))
        return forward(batch)

    language_model = model.language_model._replace(forward=counted)
    monkeypatch.setattr(model._default, "language_model", language_model)
    return steps


def test_pairs_are_scored_several_in_a_step(model, monkeypatch):
    rng = np.random.default_rng(5)
    pairs = [(rng.integers(1, 4096, 1 + i).tolist(), rng.integers(1, 4096, 1 + i % 5).tolist()) for i in range(40)]
    solo = [model.score(*pair) for pair in pairs]
    steps = steps_of(model, monkeypatch)
    assert list(model.score_many(pairs)) == solo
    assert max(map(len, steps)) == MAX_LANES
    assert max(map(sum, steps)) <= PREFILL_ROWS
    assert len(steps) < 20
    assert sum(map(sum, steps)) == sum(len(prompt) + len(ids) - 1 for prompt, ids in pairs)


def test_a_common_prefix_is_computed_once(model, monkeypatch):
    rng = np.random.default_rng(6)
    questions = [rng.integers(1, 4096, n).tolist() for n in (30, 64, 65, 100, 300)]
    pairs = [(question, [answer, 7]) for question in questions for answer in (3, 4, 5, 6)]
    solo = [model.score(*pair) for pair in pairs]
    steps = steps_of(model, monkeypatch)
    assert list(model.score_many(pairs)) == solo
    assert sum(map(sum, steps)) == sum(map(len, questions)) - 5 + 20 * 2
    assert any(len(step) == 5 for step in steps)


def test_pairs_are_read_lazily_and_scored_before_an_error(model):
    read = []

    def pairs():
        for i in range(1000):
            read.append(i)
            yield ([5], [i]) if i != 100 else ([5], [])

    scores = model.score_many(pairs())
    assert next(scores).ids == [0]
    assert len(read) <= MAX_JOBS + 1
    found = []
    with pytest.raises(RequestError, match="no tokens"):
        found.extend(score.ids[0] for score in scores)
    assert found == list(range(1, 100))


def test_too_little_memory_is_an_error_before_scoring(monkeypatch):
    model = rushlight.load()
    monkeypatch.setattr(model._backend, "available_bytes", lambda: 100_000, raising=False)
    with pytest.raises(MemoryLimitError, match="1024 tokens do not fit in memory"):
        model.score("Once", " upon")


def test_a_continuation_of_more_rows_than_are_in_memory_at_once(model):
    ids = [int(i) for i in np.random.default_rng(0).integers(4096, size=3 * SCORED_ROWS + 2)]
    score = model.score(ids[:1], ids[1:])
    np.testing.assert_allclose(score.logprobs, logprobs(model, ids), rtol=1e-12)


def test_pairs_that_cannot_be_scored_are_an_error(model):
    with pytest.raises(RequestError, match="the continuation has no tokens"):
        model.score("Once", "")
    with pytest.raises(RequestError, match="no such token: 4096"):
        model.score("Once", [4096])
    model.score([5] * 512, [5])
    with pytest.raises(ContextLengthError, match=r"514 tokens.* 512; shorten them by 1 "):
        model.score([5] * 512, [5, 6])


def test_a_model_without_a_tokenizer_scores_ids():
    model = rushlight.load()
    model.tokenizer = None
    assert model.score([5, 6], [7]).ids == [7]
    assert model.perplexity([5, 6, 7]).n_scored == 2
    for call in (lambda: model.score("a", "b"), lambda: model.perplexity("some text")):
        with pytest.raises(TokenizerError, match="no tokenizer"):
            call()


def test_a_patch_changes_the_score(model):
    pair = ("Once upon a time", " there was a king")
    before, rows = model.score(*pair), []

    def silent(x):
        rows.append(len(x))
        return 0 * x

    with model.patch({"h.2.mlp": silent}):
        patched = model.score(*pair)
        again, _ = model.score_many([pair, (pair[0], " was")])
    assert before.logprob != patched.logprob == again.logprob
    assert rows[0] == len(before.prompt_ids) + len(before.ids) - 1
    assert len(rows) == 3
    assert model.score(*pair) == before


@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 64), (64, 24), (40, 9)])
def test_perplexity_is_the_mean_over_the_window_of_each_token(model, window, stride):
    ids = model.tokenizer.encode(TEXT)
    found = model.perplexity(TEXT, window=window, stride=stride)
    size, step = window or 512, stride or 512
    total, previous_end, n = 0.0, 0, 0
    for begin in range(0, len(ids), step):
        here = ids[begin : begin + size]
        new = begin + len(here) - previous_end
        scored = logprobs(model, here)[-new:] if len(here) > 1 else []
        total -= sum(scored)
        n += len(scored)
        previous_end = begin + len(here)
        if previous_end == len(ids):
            break
    assert (found.n_ids, found.n_scored, found.n_bytes) == (len(ids), n, len(TEXT))
    assert found.nll == pytest.approx(total / n, rel=1e-12)
    assert found.perplexity == math.exp(found.nll)


def test_perplexity_of_text_pieces_and_ids_is_the_same(model):
    ids = model.tokenizer.encode(TEXT)
    pieces = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
    results = [model.perplexity(text, window=64, stride=32) for text in (TEXT, pieces, ids, iter(ids))]
    assert len({result.nll_sum for result in results}) == 1
    assert [result.n_bytes for result in results] == [len(TEXT), len(TEXT), None, None]


def test_perplexity_reports_progress(model):
    seen = []
    result = model.perplexity(TEXT, window=64, progress=lambda so_far: seen.append((so_far.n_windows, so_far.n_ids)))
    assert seen == [(n + 1, min(64 * (n + 1), result.n_ids)) for n in range(result.n_windows)]
    assert result.tok_s > 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"window": 1}, "the window is 1 tokens .*2 to 512"),
        ({"window": 513}, "the window is 513"),
        ({"window": 64.0}, "the window is 64.0"),
        ({"stride": "8"}, "the stride is '8'"),
        ({"stride": 0}, "the stride is 0 tokens .*1 to 512"),
        ({"window": 100, "stride": 101}, "the stride is 101 tokens .*1 to 100"),
    ],
)
def test_out_of_range_windows_and_strides_are_an_error(model, settings, problem):
    with pytest.raises(RequestError, match=problem):
        model.perplexity(TEXT, **settings)


@pytest.mark.parametrize("text", ["", "x", [], [5]])
def test_perplexity_without_a_token_to_score_is_an_error(model, text):
    with pytest.raises(RequestError, match="no tokens to score"):
        model.perplexity(text)
