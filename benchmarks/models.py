"""`python -m benchmarks.models`: today's small models on a CPU, next to llama.cpp and transformers.

SmolLM2-135M, with its trained weights where RUSHLIGHT_REAL_MODELS is set (see tests/real/real_models.py), and
Qwen3-0.6B with random weights. llama.cpp runs GGUF files of the same weights. A model that is already in
results/models.json is not measured again, so that an interrupted run can continue; `--again` measures all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.checkpoint import QWEN3_600M, SMOLLM2_135M, write_decoder
from benchmarks.goals import ratio
from benchmarks.handle import ROOT
from benchmarks.report import MARKS, STEPS, agreement, costs, dtypes, problems, rates, table
from benchmarks.run import BenchmarkRun, RunConfig, log
from rushlight.files.atomic import atomic_write
from rushlight.host.threads import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = {"smollm2-135m": SMOLLM2_135M, "qwen3-0.6b": QWEN3_600M}
"""Names of the models -> their config.json."""

RUNTIMES = ("rushlight", "llama.cpp", "transformers")
RIVAL = "llama.cpp"

READING_SHARE = 0.90
READING_DTYPES = ("bf16", "int8")
"""The dtypes for which decoding must reach READING_SHARE of the speed of only reading the weights."""


def checkpoint_of(name: str, work: Path) -> tuple[Path, str]:
    """The folder of a model, written if it has random weights and is not there, and a description of its weights."""
    trained = os.environ.get("RUSHLIGHT_REAL_MODELS")
    if name == "smollm2-135m" and trained:
        return Path(trained, "smollm2").resolve(), "trained weights"
    folder = work / name
    if not folder.exists():
        log(f"writing {name}")
        write_decoder(folder, MODELS[name])
    return folder, "random weights"


def measure(name: str, config: RunConfig) -> dict[str, Any]:
    """The record of one model."""
    folder, weights = checkpoint_of(name, config.work)
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return {"weights": weights, **BenchmarkRun(config).compare(folder, vocab_size)}


def reading_share(record: dict[str, Any], dtype: str) -> float | None:
    """The speed of decoding as a share of that of only reading the same weights, the median of the rounds' ratios."""
    rate = record["runtimes"]["rushlight"]["dtypes"].get(dtype, {}).get("decode_tok_s")
    limit = record["own"].get("bandwidth_gb_s", {}).get(dtype)
    if not rate or not limit:
        return None
    step = record["own"]["step_bytes"][dtype] / 1e9
    return statistics.median(tok_s * step / gb_s for tok_s, gb_s in zip(rate["values"], limit["values"], strict=False))


def markdown(records: dict[str, dict[str, Any]]) -> str:
    """The report of all models."""
    parts = ["# Benchmark results: small language models", "<!-- Written by `python -m benchmarks.models`. -->"]
    for name, record in records.items():
        config, runtimes = record["config"], record["runtimes"]
        versions = ", ".join(f"{each} {entry['version']}" for each, entry in runtimes.items() if entry.get("version"))
        parts += [
            f"## {name}",
            f"{record['date']} on {record['cpu']}, {record['threads']} threads: {record['weights']}, "
            f"{config['repeats']} rounds, each of all runtimes. {versions}, Python {record['versions']['python']}.",
            _summary(record),
            table(["metric", "goal", "measured", ""], _goals(record)),
        ]
        for metric, title in STEPS.items():
            parts += [f"### {name}: {title.format(**config)}, tok/s", rates(record, metric)]
        parts += [f"### {name}: start and memory", costs(record)]
        parts += [f"### {name}: agreement of the results", agreement(record)]
        if found := problems(record):
            parts += [f"### {name}: not measured", "\n".join(f"- {problem}" for problem in found)]
    return "\n\n".join(parts) + "\n"


def _summary(record: dict[str, Any]) -> str:
    """The rates of rushlight by dtype, with the speedup over llama.cpp: the table of docs/performance.md."""
    mine = record["runtimes"]["rushlight"]["dtypes"]
    rows = []
    for metric, title in STEPS.items():
        row = [title.format(**record["config"])]
        for dtype in dtypes(record):
            rate, (times, _) = mine.get(dtype, {}).get(metric), ratio(record, metric, dtype, RIVAL)
            row.append("–" if rate is None else f"{rate['median']:,.0f}" + ("" if times is None else f" ({times:.2f})"))
        rows.append(row)
    shares = [reading_share(record, dtype) for dtype in dtypes(record)]
    rows.append(["decode, share of the memory bandwidth", *("–" if each is None else f"{each:.0%}" for each in shares)])
    return table(["tokens a second (× llama.cpp)", *dtypes(record)], rows)


def _goals(record: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of the table of goals: never below llama.cpp, and the share of reading speed."""
    for dtype in dtypes(record):
        share = reading_share(record, dtype)
        metric = f"decode, one sequence, {dtype}, share of only reading the weights"
        goal = f"≥ {READING_SHARE:.0%}" if dtype in READING_DTYPES else "–"
        met = None if share is None or dtype not in READING_DTYPES else share >= READING_SHARE
        yield [metric, goal, "not measured" if share is None else f"{share:.0%}", MARKS[met]]
    for metric, title in STEPS.items():
        for dtype in dtypes(record):
            times, why = ratio(record, metric, dtype, RIVAL)
            met = None if times is None else times >= 1
            measured = why if times is None else f"{times:.2f} ×"
            yield [f"{title.format(**record['config'])}, {dtype}, over {RIVAL}", "≥ 1.00 ×", measured, MARKS[met]]


def main() -> None:
    """Measures the models that are not measured yet, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description="Small models, next to others.")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated subset of: %(default)s")
    parser.add_argument("--dtypes", default=",".join(RunConfig.dtypes), help="comma-separated subset of: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of every runtime (%(default)s)")
    parser.add_argument("--repeats", type=int, default=RunConfig.repeats, help="number of rounds (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=RunConfig.prompt_tokens, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=RunConfig.tokens, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=RunConfig.batch_size, help="(%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure models again that have results")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "benchmarks",
        help="folder that keeps the checkpoints (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results (%(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models.split(",") if name not in MODELS]:
        parser.error(f"unknown model: {', '.join(unknown)}; expected {', '.join(MODELS)}")
    for folder in (arguments.work, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig(
        work=arguments.work.resolve(),
        runtimes=RUNTIMES,
        dtypes=tuple(arguments.dtypes.split(",")),
        threads=arguments.threads,
        repeats=arguments.repeats,
        prompt_tokens=arguments.prompt_tokens,
        tokens=arguments.tokens,
        batch_size=arguments.batch_size,
    )
    path = arguments.out / "models.json"
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in arguments.models.split(","):
        if name in records and not arguments.again:
            log(f"{name} is measured already")
            continue
        records[name] = measure(name, config)
        atomic_write(path, (json.dumps(records, indent=1) + "\n").encode())
        (arguments.out / "models.md").write_text(markdown(records), encoding="utf-8")
    sys.stdout.write(markdown(records))


if __name__ == "__main__":
    main()
