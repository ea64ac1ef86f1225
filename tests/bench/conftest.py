"""Makes `benchmarks`, which is not installed, importable, and provides the records of a benchmark run."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


def sample(*values):
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1], "values": list(values)}


RATES = {
    "decode": 40.0,
    "batch": 300.0,
    "prefill 512": 400.0,
    "prefill 2048": 380.0,
    "decode at 2048": 30.0,
    "decode at 8192": 20.0,
}
CELLS = {
    "decode": "decode, one sequence",
    "batch": "decode, batch size 16",
    "prefill 512": "prefill of 512",
    "prefill 2048": "prefill of 2,048",
    "decode at 2048": "decode at 2,048 positions",
    "decode at 8192": "decode at 8,192 positions",
}
WORK = {
    "decode": {"do": "decode", "n_tokens": 32, "n_sequences": 1, "position": 48, "every": 1},
    "batch": {"do": "decode", "n_tokens": 256, "n_sequences": 16, "position": 32, "every": 1},
    "prefill 512": {"do": "prefill", "n_tokens": 512, "n_sequences": 1, "position": 512, "every": 1},
    "prefill 2048": {"do": "prefill", "n_tokens": 2048, "n_sequences": 1, "position": 2048, "every": 1},
    "decode at 2048": {"do": "decode_at", "n_tokens": 16, "n_sequences": 1, "position": 2048, "every": 1},
    "decode at 8192": {"do": "decode_at", "n_tokens": 16, "n_sequences": 1, "position": 8192, "every": 1},
}
DTYPES = ("f32", "f16", "bf16", "int8", "int4")
LLAMA = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "int8", "Q4_0": "int4", "Q4_K_M": "int4"}
ERRORS = {"f32": 0.001, "f16": 0.002, "bf16": 0.003, "int8": 0.01, "int4": 0.1}
DRIFT = (1.0, 0.7, 0.5)


def runtime(distribution, formats, factor, **more):
    """A runtime `factor` times as fast as llama.cpp, in three rounds while the machine slows down to half its speed."""
    return {
        "version": "1.2",
        "distribution": distribution,
        "installed_bytes": 100_000_000,
        "formats": {
            form: {
                "dtype": dtype,
                "agrees": True,
                "logits_error": ERRORS[dtype] * (0.5 if distribution == "rushlight" else 1),
                "greedy_gap": 0.0,
                "peak_bytes": 600_000_000,
                "computes": "f32, brgemm avx512",
                "cells": {
                    cell: {
                        "rounds": [0, 1, 2],
                        "tok_s": [factor * rate * drift for drift in DRIFT],
                        "read_gb_s": [51.0 * drift / DRIFT[-1] for drift in DRIFT],
                        "read_one_gb_s": [30.0, 30.0, 30.0],
                        "peak_gops": [210.0 * drift for drift in DRIFT],
                        "peak_f32_gops": [210.0 * drift for drift in DRIFT],
                        **({"weights_gb_s": [52.0 * drift / DRIFT[-1] for drift in DRIFT]} if cell == "decode" else {}),
                    }
                    for cell, rate in RATES.items()
                },
                **more,
            }
            for form, dtype in formats.items()
        },
    }


RECORD = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "A Processor, AVX2",
    "cores": 2,
    "threads": 2,
    "versions": {"rushlight": "0", "python": "3.11.7", "numpy": "2"},
    "title": "GPT-2 124M shape",
    "weights": "random weights",
    "config": {"repeats": 3},
    "cells": CELLS,
    "work": WORK,
    "complete": True,
    "rounds": {"int8,int4,f16,bf16,f32": 3},
    "reference": "transformers",
    "runtimes": {
        "rushlight": runtime("rushlight", dict(zip(DTYPES, DTYPES, strict=True)), 2.5, first_token_s=sample(0.2, 0.21)),
        "llama.cpp": runtime("llama-cpp-python", LLAMA, 1.0, first_token_s=sample(0.4, 0.41, 0.42)),
        "OpenVINO": runtime("openvino", {"f32": "f32", "bf16": "bf16", "int8": "int8"}, 1.5),
        "transformers": {"version": None, "distribution": "transformers", "formats": {}, "problem": "not installed"},
    },
    "own": {
        "reader": "weights",
        "sizes": {
            dtype: {
                "step_bytes": 1_000_000_000,
                "weights": 124_000_000,
                "head_weights": 39_000_000,
                "kv_bytes": 40_000,
                "attention": 18_000,
                "context": 8192,
            }
            for dtype in DTYPES
        },
        "memory": {dtype: {"weights": 500_000_000, "kv": 40_000_000} for dtype in DTYPES},
        "bare_python_s": sample(0.01, 0.01, 0.01),
        "import_s": sample(0.05, 0.05, 0.05),
        "help_s": sample(0.12, 0.12, 0.12),
        "sampling_s": sample(1e-4, 1e-4, 1e-4),
        "calls_s": {"int4": sample(2e-4, 2e-4, 2e-4)},
        "engine": {"speculation": sample(4.0), "no_hits": sample(1.0)},
        "first_token_converted_s": sample(0.15),
        "loss": {"f32": 3.6, "int8": 3.601, "int4": 3.615, "int4 calibrated": 3.605},
    },
}


@pytest.fixture
def record():
    """A record that meets every goal."""
    return copy.deepcopy(RECORD)


@pytest.fixture
def models(record):
    """The records of the models that goals are about, which meet every goal."""
    return {name: copy.deepcopy({**record, "title": name}) for name in ("gpt2", "smollm2", "qwen3-shape")}
