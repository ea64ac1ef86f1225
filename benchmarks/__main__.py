"""`python -m benchmarks`: from a random checkpoint to a table, a JSON file and a plot. README.md tells how."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.handle import ROOT
from benchmarks.peers import PEERS
from benchmarks.plot import svg
from benchmarks.report import markdown
from benchmarks.sitting import Plan, Sitting
from rushlight.bench.machine import usable_cores


def main() -> None:
    """Measures, writes, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="rushlight against other runtimes.")
    parser.add_argument("--runtimes", default=",".join(PEERS), help="of these: %(default)s")
    parser.add_argument("--dtypes", default=",".join(Plan.dtypes), help="of these: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="for every runtime (%(default)s)")
    parser.add_argument("--repeats", type=int, default=Plan.repeats, help="rounds (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=Plan.prompt_tokens, help="of prefill (%(default)s)")
    parser.add_argument("--tokens", type=int, default=Plan.tokens, help="decoded by each sequence (%(default)s)")
    parser.add_argument("--together", type=int, default=Plan.together, help="sequences in the batch (%(default)s)")
    parser.add_argument("--held-out", type=Path, help="text for the perplexities (examples/train_tales writes one)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks", help="checkpoints; kept (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="results (%(default)s)")
    parser.add_argument("--render", type=Path, metavar="JSON", help="measure nothing: write the report of this record")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runtimes.split(",") if name not in PEERS]
    if unknown:
        parser.error(f"no such runtime: {', '.join(unknown)}; there are {', '.join(PEERS)}")

    if arguments.render:
        record = json.loads(arguments.render.read_text(encoding="utf-8"))
    else:
        arguments.work.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            work=arguments.work.resolve(),
            runtimes=tuple(arguments.runtimes.split(",")),
            dtypes=tuple(arguments.dtypes.split(",")),
            threads=arguments.threads,
            repeats=arguments.repeats,
            prompt_tokens=arguments.prompt_tokens,
            tokens=arguments.tokens,
            together=arguments.together,
            held_out=arguments.held_out,
        )
        record = Sitting(plan).run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "cpu.md").write_text(markdown(record), encoding="utf-8")
    (arguments.out / "cpu.svg").write_text(svg(record), encoding="utf-8")
    sys.stdout.write(markdown(record))


if __name__ == "__main__":
    main()
