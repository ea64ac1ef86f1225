"""Benchmarks thread counts next to busy processes: the adaptive default, every fixed number, before and after a change.

    python -m benchmarks.threads [--before OTHER/src] [--neighbours 0,1@0,2@10] [--merge]

Each setting runs in its own process, which loads the models and blocks until it receives a request. For each set of
neighbours (processes that spin; `2@10` is two of them at nice 10) and each kind of work, all settings are timed in
interleaved rounds. A measurement during which other programs, or other guests of the machine, used the cores is
repeated; the record states how much they used.

Writes results/threads.md and results/threads.json; `--merge` keeps the rows of other neighbours and models, so that a
table can be measured in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHECKPOINT = ROOT / "build" / "benchmarks" / "gpt2-small"
MODELS = {"3.6M": "", "124M": str(CHECKPOINT)}
NEIGHBOURS = ("0", *(f"{n}@{nice}" for nice in (0, 10, 19) for n in (1, 2, 4)))
LEAST_S = 0.3
"""Minimum duration of a measurement: many of the time slices in which the kernel shares a core."""

SETTLE_S = 0.3
"""Pause after the neighbours start, and warm-up before each kind of work."""


QUIET = 0.05
"""Share of a core that programs outside the measurement may use."""

TRIES = 4


class Work(NamedTuple):
    """A timed workload: decode of a batch, or with 0 sequences a prefill."""

    n_sequences: int
    n_tokens: int

    def unit_count(self) -> int:
        return max(1, self.n_sequences) * self.n_tokens


WORK = {
    ("3.6M", "decode"): Work(1, 128),
    ("3.6M", "prefill of 192"): Work(0, 192),
    ("3.6M", "decode, batch size 16"): Work(16, 32),
    ("124M", "decode"): Work(1, 8),
    ("124M", "prefill of 192"): Work(0, 192),
    ("124M", "decode, batch size 16"): Work(16, 4),
}


class Setting(NamedTuple):
    """A build and its number of threads; None is the default."""

    label: str
    source: Path
    threads: int | None


class Worker:
    """Client of a process that has the models loaded."""

    def __init__(self, setting: Setting) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{setting.source}:{ROOT}", "HF_HUB_OFFLINE": "1"}
        environment.pop("RUSHLIGHT_NUM_THREADS", None)
        command = [sys.executable, "-m", "benchmarks.threads", "--models", ",".join(MODELS)]
        command += ["--serve", str(setting.threads or 0)]
        self._process = subprocess.Popen(  # noqa: S603, the command is ours
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT, encoding="utf-8"
        )

    def rate(self, model: str, work: Work, least_s: float = LEAST_S) -> float:
        """Tokens per second."""
        self._process.stdin.write(json.dumps([model, work, least_s]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(threads: int | None) -> None:
    """Worker process: answers a line of model, work and seconds with a rate."""
    import rushlight
    from rushlight.bench.steps import time_decode, time_prefill

    models = {name: rushlight.load(source or None, threads=threads, offline=True) for name, source in MODELS.items()}
    for line in sys.stdin:
        name, (n_sequences, n_tokens), least_s = json.loads(line)
        seconds, pieces = 0.0, 0
        while seconds < least_s:
            model = models[name]
            seconds += time_decode(model, n_sequences, n_tokens) if n_sequences else time_prefill(model, n_tokens)
            pieces += 1
        sys.stdout.write(f"{pieces * Work(n_sequences, n_tokens).unit_count() / seconds}\n")
        sys.stdout.flush()


def busy_s() -> float:
    """Seconds that all cores were busy, or stolen by a hypervisor, since boot (proc_stat(5))."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def used_s(pids: list[int]) -> float:
    """Processor time of the processes so far (proc_pid_stat(5))."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def quiet_rate(worker: Worker, model: str, work: Work, spinning: list[int]) -> tuple[float, float]:
    """The rate of the least disturbed of at most TRIES measurements, and the cores that others used."""
    found = []
    pids = [os.getpid(), worker.pid, *spinning]
    for _ in range(TRIES):
        start, foreign = time.perf_counter(), used_s(pids) - busy_s()
        rate = worker.rate(model, work)
        foreign = (foreign + busy_s() - used_s(pids)) / (time.perf_counter() - start)
        found.append((max(foreign, 0.0), rate))
        if foreign <= QUIET:
            break
    foreign, rate = min(found)
    return rate, foreign


@contextmanager
def neighbours(spec: str) -> Iterator[list[int]]:
    """Runs processes that spin, "2@10" is two at nice 10, and yields their ids."""
    n, _, nice = spec.partition("@")
    spin = f"import os\nos.nice({int(nice or 0)})\nparent = os.getppid()\n"
    spin += "while os.getppid() == parent:\n    for _ in range(10**6): pass"  # exits when this process is killed
    spinning = [subprocess.Popen([sys.executable, "-I", "-S", "-c", spin]) for _ in range(int(n))]  # noqa: S603
    try:
        time.sleep(SETTLE_S)
        yield [process.pid for process in spinning]
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def measure(workers: dict[str, Worker], spec: str, repeats: int) -> list[dict[str, object]]:
    """The rows for one set of neighbours: the rates of every setting for each kind of work, round by round."""
    rows = []
    with neighbours(spec) as spinning:
        for (model, name), work in [each for each in WORK.items() if each[0][0] in MODELS]:
            rates: dict[str, list[float]] = {label: [] for label in workers}
            others: list[float] = []
            for worker in workers.values():
                worker.rate(model, work, SETTLE_S)
            for i in range(repeats):
                for label in list(workers)[:: 1 if i % 2 else -1]:
                    rate, foreign = quiet_rate(workers[label], model, work, spinning)
                    rates[label].append(rate)
                    others.append(foreign)
            rows.append({"neighbours": spec, "model": model, "work": name, "rates": rates, "foreign": max(others)})
            sys.stderr.write(f"{spec:>5} {model} {name:15} {_medians(rates)}  others: {max(others):.2f}\n")
    return rows


def markdown(record: dict[str, object]) -> str:
    """The record as a Markdown table: medians in tokens per second, and the default over the best fixed number."""
    rows = record["rows"]
    labels = list(rows[0]["rates"])
    text = [
        "# Thread counts next to busy processes\n",
        f"{record['date']}, {record['cpu']}, {record['cores']} cores. Tokens per second: medians of "
        f"three to five interleaved rounds of at least {LEAST_S} s. A neighbour is a process that spins; `2@10` is two "
        "of them at nice 10. "
        "`default / best` is the default over the best fixed number of threads, both after the change; `others` is the "
        "largest share of a core that other programs used: ignore rows in which it is large.\n",
        "Written by `python -m benchmarks.threads --before OTHER/src`.\n",
        f"| neighbours | model | work | {' | '.join(labels)} | default / best | others |",
        f"|---|---|---|{'---:|' * (len(labels) + 2)}",
    ]
    for row in rows:
        medians = {label: statistics.median(values) for label, values in row["rates"].items()}
        cells = " | ".join(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in medians.values())
        last = f"{default_over_best(row):.2f} | {row['foreign']:.0%}"
        text.append(f"| {row['neighbours']} | {row['model']} | {row['work']} | {cells} | {last} |")
    return "\n".join(text) + "\n"


def default_over_best(row: dict) -> float:
    """The median of the default over the best median of the fixed numbers, both after the change."""
    medians = {label: statistics.median(values) for label, values in row["rates"].items()}
    best = max(value for label, value in medians.items() if label.startswith("after, -t"))
    return medians["after, default"] / best


def _medians(rates: dict[str, list[float]]) -> str:
    return "  ".join(f"{label}: {statistics.median(values):,.1f}" for label, values in rates.items())


def main() -> None:
    """Runs the benchmark, writes the results and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads", description="Thread counts next to busy processes."
    )
    parser.add_argument(
        "--before", type=Path, help="src folder, with its native extension, of the build to compare with"
    )
    parser.add_argument("--neighbours", default=",".join(NEIGHBOURS), help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds (%(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated subset of: %(default)s")
    parser.add_argument("--merge", action="store_true", help="keep the other rows of the results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--render", action="store_true", help="only write the table from the JSON again")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in set(MODELS) - set(arguments.models.split(",")):
        del MODELS[name]
    if arguments.serve is not None:
        serve(arguments.serve or None)
        return

    file = arguments.out / "threads.json"
    if arguments.render:
        (arguments.out / "threads.md").write_text(markdown(json.loads(file.read_text("utf-8"))), encoding="utf-8")
        return
    from benchmarks.checkpoint import write_checkpoint
    from benchmarks.processor import processor_kind
    from rushlight.bench.machine import machine
    from rushlight.host.threads import usable_cores

    if not (CHECKPOINT / "config.json").exists():
        write_checkpoint(CHECKPOINT)
    numbers = [None, *range(1, usable_cores() + 1)]
    settings = [Setting(_label("after", n), ROOT / "src", n) for n in numbers]
    if arguments.before:
        settings = [Setting(_label("before", None), arguments.before.resolve(), None), *settings]
    specs = arguments.neighbours.split(",")
    rows = []
    if arguments.merge and file.exists():
        taken = {(spec, model) for spec in specs for model in MODELS}
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in rows if (row["neighbours"], row["model"]) not in taken]
    with ExitStack() as stack:
        workers = {setting.label: Worker(setting) for setting in settings}
        for worker in workers.values():
            stack.callback(worker.close)
        for spec in specs:
            rows += measure(workers, spec, arguments.repeats)
    rows.sort(key=lambda row: (_place(row["neighbours"]), list(WORK).index((row["model"], row["work"]))))
    record = {**machine(), "kind": processor_kind(), "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "threads.md").write_text(markdown(record), encoding="utf-8")
    sys.stdout.write(markdown(record))


def _label(code: str, threads: int | None) -> str:
    return f"{code}, -t {threads}" if threads else f"{code}, default"


def _place(spec: str) -> int:
    return NEIGHBOURS.index(spec) if spec in NEIGHBOURS else len(NEIGHBOURS)


if __name__ == "__main__":
    main()
