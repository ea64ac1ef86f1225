"""Beam search compared with transformers."""

import numpy as np
import pytest

import rushlight
from rushlight import demo

pytestmark = pytest.mark.parity


def theirs_found(torch, model, prompt, *, n_beams, n, **settings):
    """Returns the outputs of transformers, up to their first stop token, and their scores."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=n_beams,
        num_return_sequences=n,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    texts = []
    for sequence in output.sequences[:, len(prompt) :].tolist():
        ends = [i for i, token in enumerate(sequence) if token in settings["eos_token_id"]]
        texts.append(sequence[: ends[0]] if ends else sequence)
    return texts, output.sequences_scores.tolist()


@pytest.mark.parametrize("seed", range(40))
def test_random_models(torch, random_gpt2, tmp_path, seed):
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.integers(12, 90))
    theirs = random_gpt2(seed, n_layer=2, n_head=2, n_embd=32, vocab_size=vocab_size, n_positions=200)
    theirs.save_pretrained(tmp_path)
    ours = rushlight.load(tmp_path)
    n_beams = int(rng.integers(2, 6))
    max_tokens = int(rng.choice([1, 2, 9, 40, 70]))
    length_penalty = float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0]))
    early_stopping = [False, True, "never"][seed % 3]
    ends = [0] if seed % 2 else [0, 3, 5]
    prompt = rng.integers(1, vocab_size, size=int(rng.choice([1, 30, 63, 64, 65, 100]))).tolist()
    repetition_penalty = float(rng.choice([0.7, 1.0, 1.0, 1.4]))
    biases = {int(i): float(b) for i, b in zip(rng.integers(vocab_size, size=4), rng.normal(0, 2, 4), strict=True)}
    biases = biases if seed % 4 == 0 else {}
    found = ours.beam_search(
        prompt,
        n_beams=n_beams,
        n=n_beams,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        stop_ids=ends,
        repetition_penalty=repetition_penalty,
        logit_bias=biases,
    )
    texts, scores = theirs_found(
        torch,
        theirs,
        prompt,
        n_beams=n_beams,
        n=n_beams,
        max_new_tokens=max_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_token_id=ends,
        repetition_penalty=repetition_penalty,
        sequence_bias={(i,): bias for i, bias in biases.items()} or None,
    )
    assert [beam.ids for beam in found] == texts
    np.testing.assert_allclose([beam.score for beam in found], scores, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", ["Once upon a time", "The king said to the fox", "Far away"])
def test_the_embedded_model(torch, transformers, prompt):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(demo.folder(), dtype=torch.float32).eval()
    ours = rushlight.load(dtype="f32")
    for early_stopping in (False, True):
        found = ours.beam_search(prompt, n_beams=4, n=4, max_tokens=60, early_stopping=early_stopping)
        texts, _ = theirs_found(
            torch,
            theirs,
            ours.tokenizer.encode(prompt),
            n_beams=4,
            n=4,
            max_new_tokens=60,
            early_stopping=early_stopping,
            eos_token_id=[0],
        )
        assert [beam.ids for beam in found] == texts


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("stop", [[" the"], ["s", "and a"], [". "], ["never in it"]])
def test_stop_strings(torch, transformers, stop, early_stopping):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(demo.folder(), dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(demo.folder() / "tokenizer.json"))
    ours = rushlight.load(dtype="f32")
    for prompt in ("Once upon a time", "The king said to the fox"):
        found = ours.beam_search(prompt, n_beams=4, n=4, max_tokens=40, stop=stop, early_stopping=early_stopping)
        texts, scores = theirs_found(
            torch,
            theirs,
            ours.tokenizer.encode(prompt),
            n_beams=4,
            n=4,
            max_new_tokens=40,
            early_stopping=early_stopping,
            eos_token_id=[0],
            stop_strings=stop,
            tokenizer=tokenizer,
        )
        assert [beam.ids for beam in found] == texts
        np.testing.assert_allclose([beam.score for beam in found], scores, rtol=2e-5, atol=1e-6)
