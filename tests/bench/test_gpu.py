"""`benchmarks/gpu.py` on PyTorch's CPU device and a tiny model: that it runs, and what it counts."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def gpu():
    from benchmarks import gpu

    return gpu


@pytest.fixture(scope="module")
def record(gpu):
    plan = gpu.Plan(device="torch-cpu", sequences=(1, 3), context=70, tokens=4, repeats=2, runtimes=("rushlight",))
    return gpu.measure(plan, gpu.TINY, lambda what: None)


def test_every_number_of_sequences_is_measured(gpu, record):
    assert [(r["runtime"], r["sequences"]) for r in record["results"]] == [("rushlight", 1), ("rushlight", 3)]
    for result in record["results"]:
        assert len(result["tok_s"]) == 2
        assert min(result["tok_s"]) > 0
        assert 0 < result["of_bandwidth"] < 1
        assert result["logits_gap_std"] == 0
    assert record["gpu"] is None


def test_the_report_says_that_a_cpu_proves_nothing(gpu, record):
    report = gpu.markdown(record)
    assert report.startswith("# Decode on the CPU, which shows that the script runs and nothing else\n")
    assert "| rushlight | 3 |" in report
    assert "| 1 together, tok/s | ≥ 4,000 |" in report
    assert report.rstrip().endswith("| – |")


def test_goals_are_held_to_an_h100_alone(gpu, record):
    fast = [
        {"runtime": name, "sequences": n, "tok_s": [rate]}
        for name, n, rate in (("rushlight", 1, 4500.0), ("eager", 1, 500.0), ("rushlight", 256, 9e4))
    ]
    full = record | {"results": fast, "shape": gpu.GPT2_SMALL._asdict(), "plan": {"dtype": "bf16", "context": 256}}
    assert [row[3] for row in gpu.goals(full | {"gpu": "NVIDIA H100 80GB HBM3"})] == [True, False, False]
    assert [row[3] for row in gpu.goals(full | {"gpu": "Tesla T4"})] == [None, None, None]


def test_what_a_step_must_read(gpu):
    """The arithmetic of GPT-2 124M in bf16: 247 MB of weights, 36,864 bytes a position."""
    plan = gpu.Plan(context=0)
    weights = gpu.step_bytes(gpu.GPT2_SMALL, plan, 1)
    assert weights == 2 * (12 * 12 * 768**2 + 50257 * 768)
    assert gpu.step_bytes(gpu.GPT2_SMALL, replace(plan, context=256), 256) - weights == 256 * 256 * 36_864
