"""`benchmarks/gpu.py` on PyTorch's CPU device with a tiny model."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def gpu():
    from benchmarks import gpu

    return gpu


@pytest.fixture(scope="module")
def record(gpu):
    config = gpu.GPUConfig(
        device="torch-cpu", batch_sizes=(1, 3), context=70, tokens=4, repeats=2, runtimes=("rushlight",)
    )
    return gpu.measure(config, gpu.TINY, lambda what: None)


def test_every_batch_size_is_measured(gpu, record):
    assert [(r["runtime"], r["batch_size"]) for r in record["results"]] == [("rushlight", 1), ("rushlight", 3)]
    for result in record["results"]:
        assert len(result["tok_s"]) == 2
        assert min(result["tok_s"]) > 0
        assert 0 < result["of_bandwidth"] < 1
        assert result["logits_gap_std"] == 0
    assert record["gpu"] is None


def test_the_report_of_a_cpu_is_marked_as_a_smoke_test(gpu, record):
    report = gpu.markdown(record)
    assert report.startswith("# Decode on the CPU: a smoke test, not a benchmark\n")
    assert "| rushlight | 3 |" in report
    assert "| batch size 1, tok/s | ≥ 4,000 |" in report
    assert report.rstrip().endswith("| – |")


def test_goals_apply_to_an_h100_only(gpu, record):
    fast = [
        {"runtime": name, "batch_size": n, "tok_s": [rate]}
        for name, n, rate in (("rushlight", 1, 4500.0), ("eager", 1, 500.0), ("rushlight", 256, 9e4))
    ]
    full = record | {"results": fast, "shape": gpu.GPT2_SMALL._asdict(), "config": {"dtype": "bf16", "context": 256}}
    assert [row[3] for row in gpu.goals(full | {"gpu": "NVIDIA H100 80GB HBM3"})] == [True, False, False]
    assert [row[3] for row in gpu.goals(full | {"gpu": "Tesla T4"})] == [None, None, None]


def test_step_bytes_of_gpt2_in_bf16(gpu):
    """247 MB of weights, and 36,864 bytes of KV cache per position."""
    config = gpu.GPUConfig(context=0)
    weights = gpu.step_bytes(gpu.GPT2_SMALL, config, 1)
    assert weights == 2 * (12 * 12 * 768**2 + 50257 * 768)
    assert gpu.step_bytes(gpu.GPT2_SMALL, replace(config, context=256), 256) - weights == 256 * 256 * 36_864
