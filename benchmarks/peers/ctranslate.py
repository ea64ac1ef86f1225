"""CTranslate2, through its converter and Generator. Its loop is internal: decode time is a difference."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.peers import PROMPT, copy_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTION = "ctranslate2"
NEEDS: tuple[str, ...] = ("tokenizers",)
FORMATS = {"float32": "f32", "int8_float32": "int8"}


def prepare(checkpoint: Path, form: str, folder: Path) -> Path:
    """Converts the checkpoint with CTranslate2's converter."""
    from ctranslate2.converters import TransformersConverter

    path = folder / f"ctranslate2-{form}"
    if not path.exists():
        partial = path.with_suffix(".partial")
        TransformersConverter(str(checkpoint)).convert(str(partial), quantization=form, force=True)
        copy_tokenizer(checkpoint, partial)
        partial.rename(path)
    return path


class Runtime:
    """A Generator, with the strings of the tokens, which it takes in place of ids."""

    def __init__(self, path: str, form: str, threads: int) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            path, device="cpu", compute_type=form, intra_threads=threads, inter_threads=1
        )
        self._names = json.loads((Path(path) / "vocabulary.json").read_text(encoding="utf-8"))

    def computes(self) -> str:
        return self._generator.compute_type.replace("_", " with ")

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        return np.array(self._generator.forward_batch([self._tokens(ids)]))[0]

    def prefill(self, ids: Sequence[int]) -> None:
        self._generate([ids], 1)

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        start = perf_counter()
        self._generate(prompts, 1)
        middle = perf_counter()
        results = self._generate(prompts, n_tokens + 1)
        return (perf_counter() - middle) - (middle - start), [result.sequences_ids[0] for result in results]

    def _generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list:
        return self._generator.generate_batch(
            [self._tokens(ids) for ids in prompts],
            max_length=n_tokens,
            min_length=n_tokens,
            include_prompt_in_result=False,
        )

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._names[i] for i in ids]


def first_token(path: str, form: str, threads: int) -> None:
    """Loads a tokenizer with the tokenizers library, and generates."""
    import ctranslate2

    tokenizer = load_tokenizer(Path(path))
    generator = ctranslate2.Generator(path, device="cpu", compute_type=form, intra_threads=threads)
    (result,) = generator.generate_batch(
        [tokenizer.encode(PROMPT).tokens], max_length=1, include_prompt_in_result=False
    )
    sys.stdout.write(tokenizer.decode(result.sequences_ids[0]) + "\n")
    sys.stdout.flush()
