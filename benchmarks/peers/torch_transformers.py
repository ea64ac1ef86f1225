"""Hugging Face transformers on PyTorch, with its own cache and its default attention."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTION = "transformers"
NEEDS: tuple[str, ...] = ("torch",)
FORMATS = {"float32": "f32", "bfloat16": "bf16"}


def prepare(checkpoint: Path, _form: str, _folder: Path) -> Path:
    """The checkpoint, unchanged."""
    return checkpoint


class Runtime:
    """A causal language model without gradients."""

    def __init__(self, path: str, form: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("highest")  # float32 is computed as such, not in bf16
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, form))
        self._model.eval()

    def computes(self) -> str:
        torch = self._torch
        if next(self._model.parameters()).dtype == torch.float32:
            return f"f32, {torch.get_float32_matmul_precision()} precision"
        return "bf16, " + ("AMX" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability())

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._model(self._tensor([ids])).logits[0].float().numpy()

    def prefill(self, ids: Sequence[int]) -> None:
        self._step(self._tensor([ids]), None)

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        tokens, cache = self._step(self._tensor(prompts), None)
        steps = [tokens]
        start = perf_counter()
        for _ in range(n_tokens):
            tokens, cache = self._step(tokens, cache)
            steps.append(tokens)
        seconds = perf_counter() - start
        return seconds, self._torch.cat(steps, 1).tolist()

    def _step(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        """(S, T) ids that follow those in the cache -> (S, 1) greedy next tokens, and the cache."""
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def _tensor(self, ids: Sequence[Sequence[int]]) -> Any:
        return self._torch.tensor(list(map(list, ids)))


def first_token(path: str, form: str, threads: int) -> None:
    """As the documentation of transformers shows it: tokenizer, model, generate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, form))
    out = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=1, do_sample=False, pad_token_id=0)
    sys.stdout.write(tokenizer.decode(out[0]) + "\n")
    sys.stdout.flush()
