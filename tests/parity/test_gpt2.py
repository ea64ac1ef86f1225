"""GPT-2 compared with transformers, on random configs and on the shape of GPT-2 small."""

import random

import numpy as np
import pytest

import rushlight

pytestmark = pytest.mark.parity

TOLERANCE = 2e-5
"""Relative to the largest logit. Where the two best logits are closer than twice that, greedy paths may differ."""

ACTIVATIONS = ["gelu_new", "gelu", "relu", "silu", "quick_gelu", "gelu_fast", "gelu_pytorch_tanh"]


def draw(seed):
    """Returns a random config, a dtype to save in, and an attention implementation."""
    rng = random.Random(seed)
    n_head = rng.randint(1, 7)
    config = {
        "n_layer": rng.randint(1, 4),
        "n_head": n_head,
        "n_embd": n_head * rng.randint(2, 13),
        "n_inner": rng.choice([None, rng.randint(3, 150)]),
        "vocab_size": rng.randint(11, 120),
        "n_positions": rng.randint(180, 300),
        "activation_function": ACTIVATIONS[seed % len(ACTIVATIONS)],
        "layer_norm_epsilon": 10 ** rng.uniform(-6, -2),
        "scale_attn_weights": rng.random() < 0.8,
        "scale_attn_by_inverse_layer_idx": rng.random() < 0.4,
        "reorder_and_upcast_attn": rng.random() < 0.4,
        "tie_word_embeddings": rng.random() < 0.7,
        "attn_implementation": rng.choice(["eager", "sdpa"]),
    }
    return config, rng.choice(["float32", "float16", "bfloat16"]), rng.choice(["20KB", "1GB"])


def assert_same(torch, theirs, ours, prompt, steps):
    """Equal logits for the prompt, and equal greedy steps up to the first near tie; returns their number."""
    ids = torch.tensor([prompt])
    expected = theirs(ids).logits[0].numpy()
    error = np.abs(ours.logits(prompt) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE

    output = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(output.logits)
    best, second = logits.topk(2).values.T
    tied = ((best - second) < 2 * TOLERANCE * logits.abs().max()).tolist()
    sure = tied.index(True) if True in tied else steps
    greedy = ours.generate(prompt, max_tokens=steps, ignore_eos=True).ids
    assert greedy[:sure] == output.sequences[0, len(prompt) :].tolist()[:sure]
    return sure


@pytest.mark.parametrize("seed", range(21))
def test_random_configs(torch, random_gpt2, tmp_path, seed):
    config, dtype, shard_size = draw(seed)
    theirs = random_gpt2(seed, **config)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size=shard_size)
    ours = rushlight.load(tmp_path, dtype="f32")  # represents every checkpoint exactly
    prompt = np.random.default_rng(seed).integers(config["vocab_size"], size=100).tolist()
    assert assert_same(torch, theirs.float(), ours, prompt, steps=60) >= 10


def test_the_shape_of_gpt2_small(torch, random_gpt2, tmp_path):
    theirs = random_gpt2(0)
    theirs.save_pretrained(tmp_path)
    ours = rushlight.load(tmp_path)
    assert ours.n_parameters == 124_439_808
    assert ours.config.n_layer == 12
    prompt = np.random.default_rng(0).integers(50257, size=32).tolist()
    assert assert_same(torch, theirs, ours, prompt, steps=55) >= 50
