"""Times prefill and decode: complete steps, from token ids to the sampled next tokens."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from rushlight.backends.batch import BLOCK_SIZE, Chunk
from rushlight.backends.protocol import SamplingRow
from rushlight.generation import Context
from rushlight.generation.runner import ModelRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rushlight.runtime.model import Model

DECODE_PROMPT_TOKENS = 16
"""Tokens in the KV cache of a sequence when its decoding is timed."""

FILL_BLOCKS = 8
"""Blocks of keys and values that `Sequences.fill` computes at once."""


def random_ids(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    """A prompt of n random token ids."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, n)]


def time_prefill(model: Model, n_tokens: int) -> float:
    """Seconds for the prefill of n_tokens, up to the next token, with an empty cache."""
    ids = random_ids(n_tokens, model.config.vocab_size)
    context = Context(model.language_model, n_tokens)
    start = perf_counter()
    context.sample(ids, SamplingRow())
    return perf_counter() - start


def time_decode(model: Model, n_sequences: int, n_tokens: int) -> float:
    """Seconds for n_tokens greedy decode steps at batch size n_sequences."""
    sequences = Sequences(model, n_sequences, DECODE_PROMPT_TOKENS + n_tokens)
    tokens = sequences.prefill(
        [random_ids(DECODE_PROMPT_TOKENS, model.config.vocab_size, seed) for seed in range(n_sequences)]
    )
    start = perf_counter()
    for _ in range(n_tokens):
        tokens = sequences.step(tokens)
    return perf_counter() - start


class Sequences:
    """A batch of sequences of equal length that decode greedily, one token per step.

    Args:
        model: the model.
        n: the batch size.
        capacity: the maximum length of each sequence.
    """

    def __init__(self, model: Model, n: int, capacity: int) -> None:
        self._ops = model.module.ops
        self._vocab_size = model.config.vocab_size
        n_blocks = -(-capacity // BLOCK_SIZE)
        self._blocks = np.arange(n * n_blocks, dtype=np.int32).reshape(n, n_blocks)
        self._runner = ModelRunner(model.language_model, n * n_blocks)
        self.length = 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefills prompts of equal length, one at a time. Returns the next tokens, (S,)."""
        tokens = [self._run([Chunk(ids, 0, blocks)])[0] for ids, blocks in zip(prompts, self._blocks, strict=True)]
        self.length = len(prompts[0])
        return tokens

    def fill(self, length: int) -> None:
        """Stores keys and values of `length` positions, for decode steps that are timed after them.

        They are those of short prompts one after the other, each from position 0: a step reads as much as after one
        long prompt, whose attention would take far longer to compute.
        """
        piece = FILL_BLOCKS * BLOCK_SIZE
        for blocks in self._blocks:
            for start in range(0, length, piece):
                ids = random_ids(min(piece, length - start), self._vocab_size, seed=start)
                self._run([Chunk(ids, 0, blocks[start // BLOCK_SIZE :])])
        self.length = length

    def step(self, ids: Sequence[int]) -> list[int]:
        """Decodes one token per sequence. Returns the next tokens, (S,)."""
        chunks = [Chunk((i,), self.length, blocks) for i, blocks in zip(ids, self._blocks, strict=True)]
        self.length += 1
        return self._run(chunks)

    def _run(self, chunks: list[Chunk]) -> list[int]:
        return self._ops.sample(self._runner.on_device(chunks), [SamplingRow()] * len(chunks))
