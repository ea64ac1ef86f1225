"""Benchmarks the engine: speculative decoding on repetitive and other completions, and continuous batching.

    python -m benchmarks.engine SOURCE [--dtype f32] [--tokens 200] [--repeats 5]

prints the ratios of interleaved rounds. `python -m benchmarks` records the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from time import perf_counter
from typing import TYPE_CHECKING

import rushlight
from benchmarks.worker import PROMPT_TOKENS, random_ids
from rushlight.bench.steps import time_decode

if TYPE_CHECKING:
    from rushlight import Model

REPEATED_TOKEN = 11
"""The only token of repetitive completions: a logit bias selects it, which the proposer does not see."""

PIECES = 8
"""Completions that differ by a few percent are generated in interleaved pieces, so that drift affects all alike."""


def completion_s(model: Model, n_tokens: int, *, repeats_itself: bool, speculate: bool | None, seed: int = 0) -> float:
    """Seconds to decode one completion: a single repeated token, or tokens sampled at temperature 1."""
    settings = {"logit_bias": {REPEATED_TOKEN: 1e4}} if repeats_itself else {"temperature": 1.0, "seed": seed}
    ids = random_ids(PROMPT_TOKENS, model.config.vocab_size, 0)
    result = model.generate(ids, max_tokens=n_tokens, ignore_eos=True, speculate=speculate, **settings)
    return result.stats.decode_s


def no_hits_ratio(model: Model, n_tokens: int) -> float:
    """The rate of non-repetitive completions, speculative over plain decoding: n_tokens each, in PIECES."""
    n_piece = max(2, n_tokens // PIECES)
    times_s: dict[bool | None, float] = {False: 0.0, None: 0.0}
    for seed in range(PIECES):
        for speculate in (False, None) if seed % 2 else (None, False):
            times_s[speculate] += completion_s(model, n_piece, repeats_itself=False, speculate=speculate, seed=seed)
    return times_s[False] / times_s[None]


def batch_s(model: Model, n_sequences: int, n_tokens: int) -> tuple[float, float]:
    """Seconds for n_sequences greedy completions, prefill included, and seconds per decode step."""
    vocab_size = model.config.vocab_size
    settings = {"max_tokens": n_tokens, "ignore_eos": True}
    requests = [rushlight.Request(random_ids(PROMPT_TOKENS, vocab_size, s), (), settings) for s in range(n_sequences)]
    decode_s = 0.0
    start = perf_counter()
    for _, result in model.generate_many(requests, max_active=n_sequences):
        if isinstance(result, rushlight.RushlightError):
            raise result
        decode_s = max(decode_s, result.stats.decode_s)  # they share the steps
    return perf_counter() - start, decode_s / (n_tokens - 1)


def measure(model: Model, *, n_tokens: int, n_sequences: int, repeats: int) -> dict[str, list[float]]:
    """Each round's ratios of rates.

    Returns:
        speculation: a repetitive completion, speculative over plain decoding.
        no_hits: a non-repetitive completion, the same.
        engine_step: a decode step in the engine over a bare step of the same batch size.
        batching: n_sequences in one batch over one at a time.
    """
    found: dict[str, list[float]] = {"speculation": [], "no_hits": [], "engine_step": [], "batching": []}
    for i in range(repeats + 1):
        plain_s, speculative_s = (
            completion_s(model, n_tokens, repeats_itself=True, speculate=speculate) for speculate in (False, None)
        )
        no_hits = no_hits_ratio(model, n_tokens)
        few = max(2, n_tokens // 8)
        step_s = time_decode(model, n_sequences, few) / few
        all_s, engine_step_s = batch_s(model, n_sequences, few)
        one_s, _ = batch_s(model, 1, few)
        if i:  # the first warms up
            found["speculation"].append(plain_s / speculative_s)
            found["no_hits"].append(no_hits)
            found["engine_step"].append(step_s / engine_step_s)
            found["batching"].append(n_sequences * one_s / all_s)
    return found


def main() -> None:
    """Runs the benchmark and prints the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", help="a source as for `rushlight generate`; default: the embedded model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=200, help="length of each completion (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds (%(default)s)")
    arguments = parser.parse_args()
    model = rushlight.load(arguments.source, dtype=arguments.dtype)
    found = measure(model, n_tokens=arguments.tokens, n_sequences=arguments.batch_size, repeats=arguments.repeats)
    for name, ratios in found.items():
        sys.stdout.write(f"{name:12} {statistics.median(ratios):6.2f} x  {json.dumps([round(r, 2) for r in ratios])}\n")


if __name__ == "__main__":
    main()
