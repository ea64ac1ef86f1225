"""Perplexity and scores compared with transformers: the loop of its guide, and its losses."""

import numpy as np
import pytest

import rushlight
from rushlight import demo

pytestmark = pytest.mark.parity

RELATIVE = 2e-6
"""transformers sums in float32."""


def guide(torch, model, ids, max_length, stride):
    """The loop of the transformers guide "Perplexity of fixed-length models", also with each token counted once."""
    ids = torch.tensor([ids])
    seq_len = ids.size(1)
    nll_sum, n_tokens, once_sum, n_once, prev_end_loc = 0.0, 0, 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        loss = model(input_ids, labels=target_ids).loss
        num_loss_tokens = (target_ids != -100).sum().item() - target_ids.size(0)
        nll_sum += loss * num_loss_tokens
        n_tokens += num_loss_tokens
        predicted = (target_ids[:, 1:] != -100).sum().item()
        once_sum += loss * predicted
        n_once += predicted
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return torch.exp(nll_sum / n_tokens).item(), torch.exp(once_sum / n_once).item(), n_once


@pytest.mark.parametrize(("n_ids", "window", "stride"), [(700, 96, 96), (700, 96, 32), (333, 50, 7), (40, 96, 64)])
def test_perplexity_of_a_random_model(torch, random_gpt2, tmp_path, n_ids, window, stride):
    theirs = random_gpt2(3, n_layer=2, n_head=3, n_embd=48, vocab_size=97, n_positions=96)
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(n_ids).integers(97, size=n_ids).tolist()
    found = rushlight.load(tmp_path).perplexity(ids, window=window, stride=stride)
    in_guide, once, n_scored = guide(torch, theirs, ids, window, stride)
    assert found.n_scored == n_scored
    assert found.guide_perplexity == pytest.approx(in_guide, rel=RELATIVE)
    assert found.perplexity == pytest.approx(once, rel=RELATIVE)


def test_perplexity_of_the_embedded_model(torch, transformers):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(demo.folder(), dtype=torch.float32).eval()
    ours = rushlight.load(dtype="f32")
    text = "Once upon a time there was a king who had three sons, and the youngest was called Boots. " * 60
    ids = ours.tokenizer.encode(text)
    assert len(ids) > 2 * 512
    for stride in (512, 128):
        found = ours.perplexity(text, stride=stride)
        in_guide, once, _ = guide(torch, theirs, ids, 512, stride)
        assert found.guide_perplexity == pytest.approx(in_guide, rel=RELATIVE)
        assert found.perplexity == pytest.approx(once, rel=RELATIVE)


def test_scores(torch, transformers):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(demo.folder(), dtype=torch.float32).eval()
    ours = rushlight.load(dtype="f32")
    for prompt, continuation in [("Once upon a time", " there was a king"), ("The wolf said", ", “Let me in!”")]:
        score = ours.score(prompt, continuation)
        ids = torch.tensor([score.prompt_ids + score.ids])
        logprobs = torch.log_softmax(theirs(ids[:, :-1]).logits[0], dim=-1)[-len(score.ids) :]
        expected = logprobs.gather(1, torch.tensor(score.ids)[:, None])[:, 0]
        np.testing.assert_allclose(score.logprobs, expected.numpy(), rtol=1e-4, atol=1e-5)
        assert score.is_greedy == (logprobs.argmax(1).tolist() == score.ids)
