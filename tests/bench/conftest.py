"""Makes `benchmarks`, which is not installed, importable, and provides a record of a benchmark run."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


def sample(*values):
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1], "values": list(values)}


RATES = {"decode_tok_s": 40.0, "prefill_tok_s": 400.0, "batch_decode_tok_s": 300.0}
DTYPES = ("f32", "bf16", "int8", "int4")


def runtime(distribution, factor, **more):
    """A runtime `factor` times as fast as the peer, in three rounds while the machine slows down to half its speed."""
    return {
        "version": "1.2",
        "distribution": distribution,
        "installed_bytes": 100_000_000,
        "dtypes": {
            dtype: {
                "agrees": True,
                "logits_error": 1e-6,
                "greedy_gap": 0.0,
                "peak_bytes": 600_000_000,
                **{what: sample(*(factor * rate * drift for drift in (1.0, 0.7, 0.5))) for what, rate in RATES.items()},
                **more,
            }
            for dtype in DTYPES
        },
    }


RECORD = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "A Processor, AVX2",
    "cores": 2,
    "threads": 2,
    "versions": {"rushlight": "0", "python": "3.11.7", "numpy": "2"},
    "config": {"prompt_tokens": 512, "tokens": 32, "batch_size": 16, "repeats": 3},
    "reference": "transformers",
    "runtimes": {
        "rushlight": runtime("rushlight", 2.5, first_token_s=sample(0.2, 0.21, 0.22)),
        "llama.cpp": runtime("llama-cpp-python", 1.0, first_token_s=sample(0.4, 0.41, 0.42)),
        "transformers": {"version": None, "distribution": "transformers", "dtypes": {}, "problem": "not installed"},
    },
    "own": {
        "reader": "weights",
        "step_bytes": dict.fromkeys(DTYPES, 500_000_000),
        "bandwidth_gb_s": {dtype: sample(55.0, 38.5, 27.5) for dtype in DTYPES},
        "memory": {dtype: {"weights": 500_000_000, "kv": 40_000_000} for dtype in DTYPES},
        "bare_python_s": sample(0.01, 0.01, 0.01),
        "import_s": sample(0.05, 0.05, 0.05),
        "help_s": sample(0.12, 0.12, 0.12),
        "sampling_s": sample(1e-4, 1e-4, 1e-4),
        "calls_s": {"int4": sample(2e-4, 2e-4, 2e-4)},
        "loss": {"f32": 3.6, "int8": 3.601, "int4": 3.615},
    },
}


@pytest.fixture
def record():
    """A record that meets every goal but the two of speculative decoding, which it does not measure."""
    return copy.deepcopy(RECORD)
