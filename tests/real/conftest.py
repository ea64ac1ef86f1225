"""The folders of trained models, and what transformers computes with them."""

import os
from pathlib import Path

import numpy as np
import pytest

MODELS = "RUSHLIGHT_REAL_MODELS"
CHUNK_ROWS = 500


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
        """The logits of some rows of a text, computed in chunks, because eager attention holds (H, T, T) scores."""
        ids, cache, found = self._torch.tensor([ids]), None, []
        for at in range(0, ids.shape[1], CHUNK_ROWS):
            chunk = ids[:, at : at + CHUNK_ROWS]
            wanted = [row - at for row in rows if at <= row < at + chunk.shape[1]]
            output = self.model(
                chunk, past_key_values=cache, use_cache=True, logits_to_keep=self._torch.tensor(wanted or [0])
            )
            cache = output.past_key_values
            found += [output.logits[0].numpy()] if wanted else []
        return np.concatenate(found)


@pytest.fixture(scope="module")
def theirs(torch, transformers, real_models, request):
    """transformers' model of the folder that the test file names as FOLDER."""
    return Theirs(torch, transformers, real_models(request.module.FOLDER))
