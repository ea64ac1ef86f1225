"""Compares two builds of rushlight in interleaved rounds: every dtype and kind of work of a model.

    python -m benchmarks.compare before/src after/src --model gpt2,smollm2

Each folder holds the package `rushlight` with its native extension, and runs in its own process, at real-time priority
where that is permitted. The builds alternate, so that drift of the machine's speed cancels out of the ratio, and memory
is read next to every pair. Nothing else should run at the same time. A model takes three to five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.handle import ROOT
from benchmarks.limits import Probe
from benchmarks.models import SHAPES, benchmark_model
from benchmarks.run import DTYPES
from rushlight.bench import Repeats, machine
from rushlight.host.threads import usable_cores

SLOWER = 0.98
"""The least speed of after over before that is not marked."""


class Work(NamedTuple):
    """A timed workload.

    Attributes:
        kind: "decode" or "prefill".
        n: the batch size, or the length of the prefill.
        tokens: steps to decode.
        position: positions before them.
        every: 1 is every round.
    """

    kind: str
    n: int
    tokens: int = 0
    position: int = 16
    every: int = 1


def work(context: int) -> dict[str, Work]:
    """Names -> the workloads that a context has room for."""
    long = min(2048, context)
    return {
        "decode": Work("decode", 1, 16),
        "decode, batch size 4": Work("decode", 4, 8),
        "decode, batch size 16": Work("decode", 16, 8),
        f"decode at {long:,} positions": Work("decode", 1, 8, long - 8),
        "prefill of 512": Work("prefill", 512),
        f"prefill of {long:,}": Work("prefill", long, every=3),
    }


WORKER = """
import sys
import rushlight
from time import perf_counter
from rushlight.bench.steps import Sequences, random_ids, time_prefill
model = rushlight.load(sys.argv[1], dtype=sys.argv[2])
kept = {}
print("ready", flush=True)
for line in sys.stdin:
    kind, *numbers = line.split()
    n, tokens, position = map(int, numbers)
    if kind == "prefill":
        seconds = time_prefill(model, n)
    else:
        if (n, position) not in kept:
            kept[n, position] = Sequences(model, n, position + tokens)
            kept[n, position].prefill([random_ids(position, model.config.vocab_size, seed) for seed in range(n)])
        sequences = kept[n, position]
        sequences.length, ids = position, [1] * n
        start = perf_counter()
        for _ in range(tokens):
            ids = sequences.step(ids)
        seconds = (perf_counter() - start) / tokens
    print(seconds, flush=True)
"""


class Build:
    """A process that has loaded the model with one build."""

    def __init__(self, folder: Path, checkpoint: Path, dtype: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        self._process = subprocess.Popen(  # noqa: S603, the command is ours
            [sys.executable, "-c", WORKER, str(checkpoint), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def time_s(self, each: Work) -> float:
        """Seconds of a decode step, or of a prefill."""
        self._process.stdin.write(f"{each.kind} {each.n} {each.tokens} {each.position}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Stops the process."""
        self._process.communicate()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a build exited; see its error above")
        return line


def compare(builds: list[Build], works: dict[str, Work], probe: Probe, dtype: str, rounds: int) -> list[dict]:
    """The times of each workload: a row with the values of before, after and the readings next to them."""
    for each in works.values():
        for build in builds:
            build.time_s(each)
    rows = [{"dtype": dtype, "work": name, "before_s": [], "after_s": [], "read_gb_s": []} for name in works]
    for i in range(rounds):
        for row, each in zip(rows, works.values(), strict=True):
            if i % each.every:
                continue
            before = probe.limits(dtype).read_gb_s
            for side in (i % 2, 1 - i % 2):
                time.sleep(0.02)
                row[("before_s", "after_s")[side]].append(builds[side].time_s(each))
            row["read_gb_s"].append((before + probe.limits(dtype).read_gb_s) / 2)
    return rows


def line(row: dict) -> str:
    """A row of the table: medians with quartiles, and the median of the rounds' ratios."""
    cells = [f"{_quartiles(row[side], 1e3)}" for side in ("before_s", "after_s")]
    speed = statistics.median(a / b for a, b in zip(row["before_s"], row["after_s"], strict=True))
    mark = "**slower**" if speed < SLOWER else ""
    reading = Repeats.of(row["read_gb_s"])
    cells += [f"{speed:.3f}", mark, f"{reading.median:.0f} ({reading.min:.0f} – {reading.max:.0f})"]
    return f"| {row['dtype']} | {row['work']} | {' | '.join(cells)} |"


def _quartiles(values: list[float], scale: float) -> str:
    if len(values) < 3:
        return " – ".join(f"{value * scale:.2f}" for value in values)
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle * scale:.2f} ({first * scale:.2f} – {third * scale:.2f})"


def real_time() -> str:
    """Gives this process, its threads and those that it starts real-time priority; "normal" where not permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except (AttributeError, OSError):  # not on macOS; not permitted
        return "normal"
    return "real-time"


HEAD = (
    "| dtype | work | before, ms (quartiles) | after, ms (quartiles) | speed, after / before | | reading, GB/s |\n"
    "|---|---|---|---|---|---|---|"
)


def show(text: str) -> None:
    """Prints a line without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Prints a table per model: the medians, and the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="folder with the package to compare with")
    parser.add_argument("after", type=Path, help="folder with the changed package")
    parser.add_argument("--model", default="gpt2", help=f"comma-separated: {', '.join(SHAPES)} or a folder")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated subset of: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every value to this file, too")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks", help="folder that keeps the checkpoints"
    )
    arguments = parser.parse_args()
    priority = real_time()
    probe = Probe(usable_cores())
    record = {**machine(), "models": {}}
    for name in arguments.model.split(","):
        model = benchmark_model(name, arguments.work.resolve())
        rows: list[dict] = []
        show(f"{model.title}, {model.weights}, {record['cpu']}\n\n{HEAD}")
        for dtype in arguments.dtypes.split(","):
            builds = [Build(folder, model.folder, dtype) for folder in (arguments.before, arguments.after)]
            found = compare(builds, work(model.context), probe, dtype, arguments.rounds)
            for row in found:
                show(line(row))
            rows += found
            for build in builds:
                build.close()
        show(f"\nAt {priority} priority. The long prefill is measured in every third round.\n")
        record["models"][name] = rows
        if arguments.json:
            arguments.json.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
