"""`python -m benchmarks`: measures models with every runtime, and writes tables, JSON and a plot. See README.md."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import results
from benchmarks.handle import ROOT
from benchmarks.models import SHAPES, benchmark_model
from benchmarks.peers import PEERS
from benchmarks.processor import processor_kind
from benchmarks.report import shares
from benchmarks.run import DTYPES, BenchmarkRun, RunConfig, log
from rushlight.host.threads import usable_cores

MODELS = ("gpt2", "smollm2", "qwen3-shape")


def main() -> None:
    """Runs the benchmarks, writes the results and prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="rushlight against other runtimes.")
    parser.add_argument(
        "--model",
        action="append",
        help=f"{', '.join(SHAPES)} or a folder; repeat it, or separate by commas ({','.join(MODELS)})",
    )
    parser.add_argument("--runtimes", default=",".join(PEERS), help="comma-separated subset of: %(default)s")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated subset of: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of every runtime (%(default)s)")
    parser.add_argument("--repeats", type=int, default=RunConfig.repeats, help="number of rounds (%(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no round of a model after so many minutes")
    parser.add_argument("--tokens", type=int, default=RunConfig.tokens, help="length of a decode (%(default)s)")
    parser.add_argument(
        "--held-out", type=Path, help="held-out text for the perplexity (examples/train_tales writes one)"
    )
    parser.add_argument("--prepare", action="store_true", help="measure nothing: convert the models for the runtimes")
    parser.add_argument("--again", action="store_true", help="measure models again that have complete results")
    parser.add_argument(
        "--share-of-limit", action="store_true", help="print only each cell's share of bandwidth or arithmetic peak"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing: write the report of the results")
    parser.add_argument(
        "--pages", action="store_true", help="measure nothing: write the tables of README.md and docs/performance.md"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks", help="folder that keeps the checkpoints"
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder for the results (%(default)s)")
    parser.add_argument("--kind", default=processor_kind(), help="kind of processor, names the results (%(default)s)")
    arguments = parser.parse_args()
    for what, chosen, known in (("runtime", arguments.runtimes, PEERS), ("dtype", arguments.dtypes, DTYPES)):
        if unknown := [name for name in chosen.split(",") if name not in known]:
            parser.error(f"unknown {what}: {', '.join(unknown)}; expected {', '.join(known)}")
    if arguments.pages:
        for path, text in results.pages():
            path.write_text(text, encoding="utf-8")
        return
    if not arguments.render:
        _measure(arguments, parser)
    if arguments.prepare:
        return
    text = results.render(arguments.out, arguments.kind)
    if arguments.share_of_limit:
        found = results.load(arguments.out, arguments.kind)
        text = "".join(f"{record['title']}\n\n{shares(record)}\n\n" for record in found.values())
    sys.stdout.write(text)


def _measure(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measures the models that lack results, and saves their records after every round."""
    names = [name for given in arguments.model or [",".join(MODELS)] for name in given.split(",")]
    if wrong := [name for name in names if name not in SHAPES and not Path(name, "config.json").exists()]:
        parser.error(f"neither a model nor a folder with config.json: {', '.join(wrong)}; models: {', '.join(SHAPES)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    config = RunConfig(
        work=arguments.work.resolve(),
        runtimes=tuple(arguments.runtimes.split(",")),
        dtypes=tuple(arguments.dtypes.split(",")),
        threads=arguments.threads,
        repeats=arguments.repeats,
        tokens=arguments.tokens,
        held_out=arguments.held_out,
        minutes=arguments.minutes,
    )
    records = results.load(arguments.out, arguments.kind)

    def save() -> None:
        results.save(arguments.out, arguments.kind, records)
        results.render(arguments.out, arguments.kind)  # so that a run that ends early leaves its tables

    for name in names:
        model = benchmark_model(name, config.work)
        if arguments.prepare:
            BenchmarkRun(config, model).prepare()
            continue
        if records.get(model.name, {}).get("complete") and not arguments.again:
            log(f"{model.name}: is measured already; --again measures it again")
            continue
        began = time.perf_counter()
        earlier = records.get(model.name, {})
        records[model.name] = {} if earlier.get("complete") else earlier
        run = BenchmarkRun(config, model, lambda _: save(), records[model.name])
        run.run()
        log(f"{model.name}: {(time.perf_counter() - began) / 60:.1f} min")


if __name__ == "__main__":
    main()
