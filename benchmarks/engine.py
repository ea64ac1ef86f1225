"""What the engine makes of a model's steps: texts that repeat themselves, texts that do not, and many at once.

    python -m benchmarks.engine SOURCE [--dtype f32] [--tokens 200] [--repeats 5]

prints the ratios of one run, rounds interleaved. The sitting of `python -m benchmarks` takes the same figures.
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
"""What a text of one token over and over is made of: a bias makes it the likeliest, of which guesses know nothing."""

PIECES = 8
"""In which texts are written that differ by a few percent: in turn, so that the machine's drift falls on all alike."""


def text_s(model: Model, n_tokens: int, *, repeats_itself: bool, speculate: bool | None, seed: int = 0) -> float:
    """Seconds that one text's decoding takes: the same token again and again, or drawn from all."""
    settings = {"logit_bias": {REPEATED_TOKEN: 1e4}} if repeats_itself else {"temperature": 1.0, "seed": seed}
    ids = random_ids(PROMPT_TOKENS, model.config.vocab_size, 0)
    result = model.generate(ids, max_tokens=n_tokens, ignore_eos=True, speculate=speculate, **settings)
    return result.stats.decode_s


def no_hits_ratio(model: Model, n_tokens: int) -> float:
    """The rate of texts that do not repeat themselves, guesses on over off: n_tokens of each, in PIECES."""
    n_piece = max(2, n_tokens // PIECES)
    times_s: dict[bool | None, float] = {False: 0.0, None: 0.0}
    for seed in range(PIECES):
        for speculate in (False, None) if seed % 2 else (None, False):
            times_s[speculate] += text_s(model, n_piece, repeats_itself=False, speculate=speculate, seed=seed)
    return times_s[False] / times_s[None]


def together_s(model: Model, n_sequences: int, n_tokens: int) -> tuple[float, float]:
    """Seconds that n_sequences greedy texts take through the engine: prompts and all, and a step of their decoding."""
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
        speculation: a text that repeats itself, guesses on over off.
        no_hits: a text that does not, the same.
        together: a step of n_sequences decoding in the engine, over a bare step of as many rows.
        alone: n_sequences through the engine, over one after another.
    """
    found: dict[str, list[float]] = {"speculation": [], "no_hits": [], "together": [], "alone": []}
    for i in range(repeats + 1):
        plain_s, guessed_s = (
            text_s(model, n_tokens, repeats_itself=True, speculate=speculate) for speculate in (False, None)
        )
        no_hits = no_hits_ratio(model, n_tokens)
        few = max(2, n_tokens // 8)
        step_s = time_decode(model, n_sequences, few) / few
        all_s, engine_step_s = together_s(model, n_sequences, few)
        one_s, _ = together_s(model, 1, few)
        if i:  # the first warms up
            found["speculation"].append(plain_s / guessed_s)
            found["no_hits"].append(no_hits)
            found["together"].append(step_s / engine_step_s)
            found["alone"].append(n_sequences * one_s / all_s)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", help="as `rushlight generate` takes it; without: the embedded model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=200, help="of each text (%(default)s)")
    parser.add_argument("--together", type=int, default=16, help="sequences at once (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (%(default)s)")
    arguments = parser.parse_args()
    model = rushlight.load(arguments.source, dtype=arguments.dtype)
    found = measure(model, n_tokens=arguments.tokens, n_sequences=arguments.together, repeats=arguments.repeats)
    for name, ratios in found.items():
        sys.stdout.write(f"{name:12} {statistics.median(ratios):6.2f} x  {json.dumps([round(r, 2) for r in ratios])}\n")


if __name__ == "__main__":
    main()
