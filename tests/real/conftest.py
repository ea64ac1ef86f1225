"""The folders of trained models, and what transformers computes with them."""

import os
from pathlib import Path

import pytest

MODELS = "RUSHLIGHT_REAL_MODELS"


@pytest.fixture(scope="session")
def real_models():
    """`real_models(name)`: a folder that tests/real/real_models.py makes."""

    def folder(name):
        if not (models := os.environ.get(MODELS)):
            pytest.fail(f"{MODELS} is not set: run tests/real/real_models.py FOLDER, and set it to that folder")
        path = Path(models, name)
        if not (path / "tokenizer.json").exists():
            pytest.fail(f"{path} is not complete: run tests/real/real_models.py {models}")
        return path

    return folder


@pytest.fixture(scope="session")
def torch():
    import torch

    with torch.inference_mode():
        yield torch


@pytest.fixture(scope="session")
def transformers(torch):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


class Theirs:
    """A causal language model of transformers: eager attention, float32."""

    def __init__(self, torch, transformers, folder):
        self._torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )

    def greedy(self, ids, n):
        ids = self._torch.tensor([ids])
        output = self.model.generate(
            ids, attention_mask=self._torch.ones_like(ids), do_sample=False, max_new_tokens=n, pad_token_id=0
        )
        return output[0, ids.shape[1] :].tolist()

    def logits(self, ids, rows):
        """The logits of some rows of a text; eager attention would hold (H, T, T) scores of a long one."""
        self.model.set_attn_implementation("sdpa")
        try:
            output = self.model(self._torch.tensor([ids]), use_cache=False, logits_to_keep=self._torch.tensor(rows))
        finally:
            self.model.set_attn_implementation("eager")
        return output.logits[0].numpy()


@pytest.fixture(scope="module")
def theirs(torch, transformers, real_models, request):
    """transformers' model of the folder that the test file names as FOLDER."""
    return Theirs(torch, transformers, real_models(request.module.FOLDER))
