"""Beam search: equal to transformers and to an exhaustive search, with shared cache blocks."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import rushlight
from rushlight.errors import ContextLengthError, GenerationError, MemoryLimitError, RequestError, TokenizerError
from rushlight.generation import BeamSearch, SamplingParams

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = json.loads((FIXTURES / "gpt2_beams.json").read_text())["cases"]
END = 7


@pytest.fixture(scope="module")
def models():
    """The small checkpoints by name, each loaded once."""
    names = {case["fixture"] for case in RECORDED}
    return {name: rushlight.load(FIXTURES / "gpt2" / name, threads=1) for name in names}


@pytest.fixture
def model(models):
    return models["gelu_new"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case['fixture']}-{len(case['prompt_ids'])}")
def test_beams_equal_those_of_transformers(models, case):
    found = models[case["fixture"]].beam_search(
        case["prompt_ids"],
        n_beams=case["num_beams"],
        n=case["num_beams"],
        max_tokens=case["max_tokens"],
        length_penalty=case["length_penalty"],
        early_stopping=case["early_stopping"],
        stop_ids=case["stop_ids"],
        ignore_eos=True,
        repetition_penalty=case.get("repetition_penalty", 1.0),
        logit_bias={int(token): bias for token, bias in case.get("logit_bias", {}).items()},
    )
    expected = [ids[:-1] if ids[-1] in case["stop_ids"] else ids for ids in case["ids"]]
    assert [beam.ids for beam in found] == expected
    np.testing.assert_allclose([beam.score for beam in found], case["scores"], rtol=3e-5)


def total(model, prompt, ids):
    return model.score(prompt, list(ids)).logprob


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_with_a_beam_per_token_the_search_is_exhaustive(model, length_penalty):
    """Compared with the scores of every completion of up to two tokens."""
    prompt, vocab_size = [5, 9, 30], model.config.vocab_size
    texts = [(END,), *itertools.product((i for i in range(vocab_size) if i != END), range(vocab_size))]
    assert vocab_size <= 64
    firsts = model.score_many([(prompt, [i]) for i in range(vocab_size)])
    first = [score.logprob for score in firsts]
    seconds = {i: model.logits([*prompt, i])[-1].astype(np.float64) for i in range(vocab_size) if i != END}
    second = {i: logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max() for i, logits in seconds.items()}
    logprobs = [first[text[0]] + (second[text[0]][text[1]] if len(text) > 1 else 0) for text in texts]
    scores = [logprob / len(text) ** length_penalty for logprob, text in zip(logprobs, texts, strict=True)]
    best = sorted(range(len(texts)), key=lambda i: -scores[i])[:20]

    found = model.beam_search(
        prompt,
        n_beams=vocab_size,
        n=20,
        max_tokens=2,
        length_penalty=length_penalty,
        early_stopping="never",
        stop_ids=[END],
        ignore_eos=True,
    )
    assert [beam.ids for beam in found] == [[i for i in texts[n] if i != END] for n in best]
    np.testing.assert_allclose([beam.score for beam in found], [scores[n] for n in best], rtol=1e-9)


@pytest.mark.parametrize("n_prompt", [1, 62, 63, 64, 65, 127, 128])
def test_the_logprob_of_a_beam_equals_its_score(model, n_prompt):
    """Covers shared, inherited and recomputed blocks, across two block boundaries."""
    prompt = [(11 * i) % 60 + 1 for i in range(n_prompt)]
    found = model.beam_search(prompt, n_beams=5, n=5, max_tokens=70, ignore_eos=True)
    assert len({tuple(beam.ids) for beam in found}) == 5
    for beam in found:
        assert (beam.finish_reason, len(beam.ids)) == ("length", 70)
        assert beam.logprob == pytest.approx(total(model, prompt, beam.ids), rel=1e-12)
        assert beam.score == beam.logprob / 70


def test_the_best_beam_is_more_likely_than_greedy_decoding():
    model = rushlight.load()
    prompt = "Once upon a time"
    greedy = model.generate(prompt, max_tokens=20)
    best, *others = model.beam_search(prompt, n_beams=4, n=4, max_tokens=20)
    assert best.logprob > model.score(greedy.prompt_ids, greedy.ids).logprob
    assert best.text == model.tokenizer.decode(best.ids) == str(best)
    assert [beam.score for beam in others] == sorted((beam.score for beam in others), reverse=True)
    assert best.prompt_ids == greedy.prompt_ids


def test_a_stop_token_is_scored_but_excluded_from_the_text(model):
    ends = [i for i in range(model.config.vocab_size) if i % 3]
    [best] = model.beam_search([5], n_beams=3, max_tokens=9, stop_ids=ends, ignore_eos=True)
    assert best.finish_reason == "stop"
    with_end = [total(model, [5], [*best.ids, end]) for end in ends]
    assert any(math.isclose(best.logprob, each, rel_tol=1e-12) for each in with_end)
    assert best.score == best.logprob / (len(best.ids) + 1)


def test_a_full_context_ends_a_beam(model):
    length = model.context_length
    [best] = model.beam_search([5] * (length - 3), n_beams=2, max_tokens=9, ignore_eos=True)
    assert (len(best.ids), best.finish_reason) == (3, "context")
    with pytest.raises(ContextLengthError):
        model.beam_search([5] * length)


def test_disallowed_tokens_are_never_selected():
    model = rushlight.load()
    model._inputs.allowed = np.ones(model.config.vocab_size, np.bool_)
    model._inputs.allowed[[12, 277]] = False
    found = model.beam_search("Once upon a time", n_beams=3, n=3, max_tokens=12)
    assert not {12, 277} & {i for beam in found for i in beam.ids}


def test_penalties_change_the_logprobs_of_repeated_tokens():
    """Compared with sums over the logits of each completion."""
    model = rushlight.load()
    prompt = model.tokenizer.encode("Once upon a time there was a king who")
    settings = {"repetition_penalty": 1.2, "presence_penalty": 0.7, "frequency_penalty": 0.3, "logit_bias": {5: -1.0}}
    found = model.beam_search(prompt, n_beams=3, n=3, max_tokens=12, **settings)
    assert [beam.ids for beam in found] != [
        beam.ids for beam in model.beam_search(prompt, n_beams=3, n=3, max_tokens=12)
    ]
    for beam in found:
        ids, total = beam.ids, 0.0
        for n, token in enumerate(ids):
            logits = model.logits([*prompt, *ids[:n]])[-1].astype(np.float64)
            logprob = logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
            logprob -= token == 5
            if token in {*prompt, *ids[:n]}:
                logprob *= 1.2 if logprob < 0 else 1 / 1.2
            total += logprob - 0.7 * (token in ids[:n]) - 0.3 * ids[:n].count(token)
        assert beam.finish_reason == "length"
        assert beam.logprob == pytest.approx(total, rel=1e-9)


def test_a_stop_string_ends_a_beam_and_is_excluded_from_its_text():
    model = rushlight.load()
    prompt = "Once upon a time"
    stop = " the"
    found = model.beam_search(prompt, n_beams=4, n=4, max_tokens=30, stop=["never in it", stop])
    assert "stop" in {best.finish_reason for best in found}
    for best in found:
        assert (stop in model.tokenizer.decode(best.ids)) == (best.finish_reason == "stop")
        assert stop not in best.text
        if best.finish_reason == "stop":
            assert best.text == model.tokenizer.decode(best.ids).partition(stop)[0]
            assert stop not in model.tokenizer.decode(best.ids[:-1])
        assert best.logprob == pytest.approx(total(model, prompt, best.ids), rel=1e-12)
    model.tokenizer = None
    with pytest.raises(TokenizerError, match="stop strings need a tokenizer"):
        model.beam_search([5], stop="a")


def test_non_finite_logits_are_an_error(model, monkeypatch):
    backend = model._backend
    monkeypatch.setattr(backend, "to_numpy", lambda x: np.full((1, 61), np.nan, np.float32))
    with pytest.raises(GenerationError, match="are not finite"):
        model.beam_search([5])


def test_too_little_memory_is_an_error_before_the_search(model, monkeypatch):
    monkeypatch.setattr(model._backend, "available_bytes", lambda: 100_000, raising=False)
    with pytest.raises(MemoryLimitError, match=r"3 beams of 59 tokens do not fit .* use fewer beams"):
        model.beam_search([5] * 9, n_beams=3, max_tokens=50)


def test_beam_search_cannot_be_traced(model):
    with model.trace(), pytest.raises(RequestError, match="cannot be traced or patched"):
        model.beam_search([5])


def test_an_error_lists_all_invalid_settings():
    with pytest.raises(RequestError) as error:
        BeamSearch(n_beams=1, params=SamplingParams(max_tokens=0), length_penalty=math.nan, early_stopping="no")
    assert str(error.value).count("expected") == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"n_beams": 65},
        {"n_beams": 4.0},
        {"n_beams": True},
        {"n": 0},
        {"n": 5},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"length_penalty": "1"},
        {"length_penalty": math.inf},
        {"length_penalty": True},
        {"early_stopping": 1},
        {"stop_ids": [4096]},
        {"stop_ids": [-1]},
        {"stop": ""},
        {"repetition_penalty": 0},
        {"presence_penalty": "1"},
        {"logit_bias": {4096: 1.0}},
    ],
)
def test_out_of_range_settings_are_an_error(model, settings):
    with pytest.raises(RequestError):
        model.beam_search([5], **settings)
