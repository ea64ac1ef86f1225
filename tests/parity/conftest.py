"""PyTorch and transformers, imported only by tests that run, and GPT-2s whose weights expose wrong arithmetic."""

import pytest


@pytest.fixture(scope="session")
def torch():
    import torch

    torch.set_num_threads(1)  # the models are small: on a busy machine threads mostly wait for each other
    with torch.inference_mode():
        yield torch


@pytest.fixture(scope="session")
def transformers(torch):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture
def random_gpt2(torch, transformers):
    """`random_gpt2(seed, n_embd=..., ...)`: a GPT-2 of transformers with that config and random weights."""

    def random_gpt2(seed, **config):
        config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **config)
        model = transformers.GPT2LMHeadModel(config).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith((".c_attn.weight", ".c_fc.weight", ".c_proj.weight")):
                std = 1.5 / parameter.shape[0] ** 0.5  # keeps activations near 1, where GELU's variants differ most
            elif name.endswith("wpe.weight"):
                std = 1.0  # so that greedy output does not converge to one token
            else:
                std = 0.3
            parameter.normal_(0.0, std, generator=generator)
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1.0)
        return model

    return random_gpt2
