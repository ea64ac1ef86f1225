"""Worker process of one runtime: answers requests, one JSON object per line, until stdin closes.

    python -m benchmarks.worker PEER

Output of the runtime itself goes to stderr. A request names a method of Worker, `{"do": "prefill", "n_tokens": 512}`;
the answer is its return value, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.peers import peer

PROMPT_TOKENS = 16
"""Tokens in the KV cache of a sequence when its decoding is timed."""


def random_ids(n: int, vocab_size: int, seed: int) -> list[int]:
    """A prompt, the same in every process. NumPy's generators would add 7 MB to the peak memory."""
    return random.Random(seed).choices(range(vocab_size), k=n)  # noqa: S311, no secret


class Worker:
    """One method per kind of request."""

    def __init__(self, name: str) -> None:
        self._peer = peer(name)
        self._runtime: Any = None
        self._vocab_size = 0

    def prepare(self, checkpoint: str, form: str, folder: str) -> dict[str, object]:
        """Converts the checkpoint to the runtime's format."""
        return {"path": str(self._peer.prepare(Path(checkpoint), form, Path(folder)))}

    def open(self, path: str, form: str, threads: int, vocab_size: int) -> dict[str, object]:
        """Loads a model."""
        self._vocab_size = vocab_size
        start = perf_counter()
        self._runtime = self._peer.Runtime(path, form, threads)
        return {"seconds": perf_counter() - start}

    def prefill(self, n_tokens: int) -> dict[str, object]:
        """Times a prefill."""
        ids = random_ids(n_tokens, self._vocab_size, 0)
        start = perf_counter()
        self._runtime.prefill(ids)
        return {"seconds": perf_counter() - start}

    def decode(self, n_sequences: int, n_tokens: int) -> dict[str, object]:
        """Times n_tokens decode steps of a batch, and returns the tokens."""
        prompts = [random_ids(PROMPT_TOKENS, self._vocab_size, seed) for seed in range(n_sequences)]
        seconds, tokens = self._runtime.decode(prompts, n_tokens)
        return {"seconds": seconds, "tokens": tokens}

    def decode_at(self, position: int, n_tokens: int) -> dict[str, object]:
        """Times n_tokens decode steps of one sequence, up to a position."""
        return {"seconds": self._runtime.decode_at(position, n_tokens)}

    def logits(self, n_tokens: int, file: str) -> dict[str, object]:
        """Writes the (T, V) logits of a prompt to a .npy file."""
        np.save(file, self._runtime.logits(random_ids(n_tokens, self._vocab_size, 0)))
        return {}

    def gaps(self, tokens: dict[str, list[int]]) -> dict[str, object]:
        """How far the logit of each token that another runtime decoded greedily lies below the maximum here.

        In standard deviations of the logits: 0 where both runtimes pick the same token.
        """
        found = []
        for seed, chosen in tokens.items():
            ids = random_ids(PROMPT_TOKENS, self._vocab_size, int(seed)) + chosen
            logits = self._runtime.logits(ids[:-1])[PROMPT_TOKENS - 1 :]
            taken = logits[np.arange(len(chosen)), chosen]
            found += ((logits.max(-1) - taken) / logits.std(-1)).tolist()
        return {"gaps": found}

    def computes(self) -> dict[str, object]:
        """The arithmetic of the runtime's products, once some have been computed."""
        return {"computes": self._runtime.computes()}

    def peak(self) -> dict[str, object]:
        """The peak resident memory of this process."""
        try:
            # Not getrusage: its figure includes the memory of the parent.
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
            return {"bytes": kib * 1024}
        except OSError:
            return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}

    def own(self, what: str, **arguments: Any) -> dict[str, object]:
        """Runs a measurement that only this runtime has."""
        return getattr(self._runtime, what)(**arguments)


def main() -> None:
    """Answers requests until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the run continues with the other runtimes
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
