"""Prefill and decode as they are timed: whole steps, from token ids to the choice of the next tokens."""

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
"""What stands in a sequence's cache when its decoding is timed."""


def random_ids(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    """A prompt of n token ids: the arithmetic is the same whatever they are."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, n)]


def time_prefill(model: Model, n_tokens: int) -> float:
    """Seconds from a prompt of n_tokens to its next token, on an empty cache."""
    ids = random_ids(n_tokens, model.config.vocab_size)
    context = Context(model.language_model, n_tokens)
    start = perf_counter()
    context.sample(ids, SamplingRow())
    return perf_counter() - start


def time_decode(model: Model, n_sequences: int, n_tokens: int) -> float:
    """Seconds that n_sequences take to go on by n_tokens each, greedily and together."""
    sequences = Sequences(model, n_sequences, DECODE_PROMPT_TOKENS + n_tokens)
    chosen = sequences.prefill(
        [random_ids(DECODE_PROMPT_TOKENS, model.config.vocab_size, seed) for seed in range(n_sequences)]
    )
    start = perf_counter()
    for _ in range(n_tokens):
        chosen = sequences.step(chosen)
    return perf_counter() - start


class Sequences:
    """Sequences of equal length that are decoded greedily together, a token of each at a step.

    Args:
        model: what runs them.
        n: how many there are.
        capacity: the most tokens that each will have.
    """

    def __init__(self, model: Model, n: int, capacity: int) -> None:
        self._ops = model.module.ops
        n_blocks = -(-capacity // BLOCK_SIZE)
        self._blocks = [range(s * n_blocks, (s + 1) * n_blocks) for s in range(n)]
        self._runner = ModelRunner(model.language_model, n * n_blocks)
        self.length = 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Feeds prompts of one length, one after the other. Returns the tokens chosen next, (S,)."""
        chosen = [self._choose([Chunk(ids, 0, blocks)])[0] for ids, blocks in zip(prompts, self._blocks, strict=True)]
        self.length = len(prompts[0])
        return chosen

    def step(self, ids: Sequence[int]) -> list[int]:
        """Feeds one token to each. Returns the tokens chosen next, (S,)."""
        chunks = [Chunk((i,), self.length, blocks) for i, blocks in zip(ids, self._blocks, strict=True)]
        self.length += 1
        return self._choose(chunks)

    def _choose(self, chunks: list[Chunk]) -> list[int]:
        return self._ops.sample(self._runner.on_device(chunks), [SamplingRow()] * len(chunks))
