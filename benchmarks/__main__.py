"""`python -m benchmarks`: benchmarks every runtime and writes a table, a JSON file and a plot. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.handle import ROOT
from benchmarks.peers import PEERS
from benchmarks.plot import svg
from benchmarks.report import markdown
from benchmarks.run import BenchmarkRun, RunConfig
from rushlight.host.threads import usable_cores


def main() -> None:
    """Runs the benchmarks, writes the results and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="rushlight against other runtimes.")
    parser.add_argument("--runtimes", default=",".join(PEERS), help="comma-separated subset of: %(default)s")
    parser.add_argument("--dtypes", default=",".join(RunConfig.dtypes), help="comma-separated subset of: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of every runtime (%(default)s)")
    parser.add_argument("--repeats", type=int, default=RunConfig.repeats, help="number of rounds (%(default)s)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=RunConfig.prompt_tokens, help="length of the prefill (%(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=RunConfig.tokens, help="tokens each sequence decodes (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=RunConfig.batch_size, help="of batched decode (%(default)s)")
    parser.add_argument(
        "--held-out", type=Path, help="held-out text for the perplexity (examples/train_tales writes one)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "benchmarks",
        help="folder that keeps the checkpoints (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results (%(default)s)"
    )
    parser.add_argument("--render", type=Path, metavar="JSON", help="only write the report of this record")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runtimes.split(",") if name not in PEERS]
    if unknown:
        parser.error(f"unknown runtime: {', '.join(unknown)}; expected {', '.join(PEERS)}")

    if arguments.render:
        record = json.loads(arguments.render.read_text(encoding="utf-8"))
    else:
        arguments.work.mkdir(parents=True, exist_ok=True)
        config = RunConfig(
            work=arguments.work.resolve(),
            runtimes=tuple(arguments.runtimes.split(",")),
            dtypes=tuple(arguments.dtypes.split(",")),
            threads=arguments.threads,
            repeats=arguments.repeats,
            prompt_tokens=arguments.prompt_tokens,
            tokens=arguments.tokens,
            batch_size=arguments.batch_size,
            held_out=arguments.held_out,
        )
        record = BenchmarkRun(config).run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "cpu.md").write_text(markdown(record), encoding="utf-8")
    (arguments.out / "cpu.svg").write_text(svg(record), encoding="utf-8")
    sys.stdout.write(markdown(record))


if __name__ == "__main__":
    main()
