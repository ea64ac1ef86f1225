"""Compares two builds of rushlight in interleaved rounds: decode, prefill and batched decode of the same model.

    python -m benchmarks.compare before/src after/src --dtypes f32,int8

Each folder holds the package `rushlight` with its native extension, and runs in its own process. The builds alternate,
so that drift of the machine's speed cancels out of the ratio. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.checkpoint import write_checkpoint
from benchmarks.handle import ROOT

DTYPES = ("f32", "f16", "bf16", "int8", "int4")
WORK = {"decode": ("decode", 1), "decode, batch size 16": ("decode", 16), "prefill of 256": ("prefill", 256)}
DECODED_TOKENS = 16

WORKER = """
import sys, rushlight
from rushlight.bench.steps import time_decode, time_prefill
model = rushlight.load(sys.argv[1], dtype=sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    kind, n, tokens = line.split()
    n, tokens = int(n), int(tokens)
    print(time_prefill(model, n) if kind == "prefill" else time_decode(model, n, tokens) / tokens, flush=True)
"""


class Build:
    """A process that has loaded the model with one build, at real-time priority where permitted."""

    def __init__(self, folder: Path, checkpoint: Path, dtype: str) -> None:
        command = [sys.executable, "-c", WORKER, str(checkpoint), dtype]
        if os.geteuid() == 0 and (chrt := shutil.which("chrt")):
            command = [chrt, "-f", "50", *command]
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        self._process = subprocess.Popen(  # noqa: S603, the command is ours
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def time_s(self, kind: str, n: int, tokens: int = DECODED_TOKENS) -> float:
        """Seconds of a decode step with batch size n, or of a prefill of n tokens."""
        self._process.stdin.write(f"{kind} {n} {tokens}\n")
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


def show(line: str) -> None:
    """Prints a line without buffering."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Prints a row per dtype and kind of work: the medians, and the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="folder with the package to compare with")
    parser.add_argument("after", type=Path, help="folder with the changed package")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated subset of: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks", help="folder that keeps the checkpoint"
    )
    arguments = parser.parse_args()
    checkpoint = arguments.work / "gpt2-small"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint)
    show("| dtype | work | before, ms | after, ms | speed, after / before |\n|---|---|---|---|---|")
    for dtype in arguments.dtypes.split(","):
        builds = [Build(folder, checkpoint, dtype) for folder in (arguments.before, arguments.after)]
        for name, (kind, n) in WORK.items():
            for build in builds:
                build.time_s(kind, n, 4)
            rounds: list[list[float]] = [[], []]
            for i in range(arguments.rounds):
                for side in (i % 2, 1 - i % 2):
                    rounds[side].append(builds[side].time_s(kind, n))
                    time.sleep(0.02)
            before, after = (statistics.median(times) * 1e3 for times in rounds)
            ratio = statistics.median(a / b for a, b in zip(*rounds, strict=True))
            show(f"| {dtype} | {name} | {before:.2f} | {after:.2f} | {ratio:.3f} |")
        for build in builds:
            build.close()


if __name__ == "__main__":
    main()
