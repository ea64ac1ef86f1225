"""One benchmark run: each runtime at each dtype in its own process, measured in interleaved rounds.

The speed of a machine drifts by tens of percent within minutes, so every round measures all runtimes, and ratios are
taken within a round.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.checkpoint import GPT2_SMALL, Shape, write_checkpoint
from benchmarks.handle import ROOT, Handle, WorkerError, environment
from benchmarks.peers import PEERS, installed_version, peer
from benchmarks.sizes import installed_bytes
from rushlight.bench import Repeats, machine
from rushlight.bench.process import run_fresh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTLE_S = 0.05
"""Pause before each measurement: the threads of the previous one may still be spinning."""

PROBE_TOKENS = 32
TOO_SLOW_S = 20
"""A runtime whose prefill would take longer, estimated from PROBE_TOKENS, is left out: it would dominate the run."""

CHECKED_SEQUENCES = 4
"""Sequences of the batch whose tokens the reference checks: the first, the last and two in between."""

CHECK_TOKENS = 64
"""Length of the prompt whose logits are compared."""

LOGITS_TOLERANCE = {"f32": 0.002, "f16": 0.004, "bf16": 0.03, "int8": 0.14, "int4": 0.5}
"""Root mean square of the difference from the reference's logits, in standard deviations of the logits.

At least twice the largest difference observed. llama.cpp keeps keys and values in f16, which shows in f32;
CTranslate2's int8 has one scale per row, the others one per 32 weights.
"""

GAP_TOLERANCE = {"f32": 0.01, "f16": 0.02, "bf16": 0.1, "int8": 0.4, "int4": 1.5}
"""How far the logit of a greedily decoded token may lie below the reference's maximum, in standard deviations."""

ENGINE_TOKENS = 200
"""Length of the completions that the engine generates with and without speculative decoding."""

REFERENCES = ("transformers", "rushlight")
"""The first of these that runs in float32 gives the logits to compare with."""

NARROW = Shape(n_embd=64, n_head=1, n_positions=512, vocab_size=256)
"""As many calls per step as GPT2_SMALL, but hardly any arithmetic: measures the overhead of a step."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The workload to measure, and the folder that keeps the checkpoints."""

    work: Path
    runtimes: tuple[str, ...] = tuple(PEERS)
    dtypes: tuple[str, ...] = ("f32", "bf16", "f16", "int8", "int4")
    threads: int = 2
    repeats: int = 5
    prompt_tokens: int = 512
    tokens: int = 32
    batch_size: int = 16
    held_out: Path | None = None


@dataclass
class BenchmarkRun:
    """Runs the benchmark that `config` describes; `record` is the result, ready for JSON."""

    config: RunConfig
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measures everything. A runtime that fails is recorded with its error, and the others continue."""
        self._begin()
        checkpoint = self._checkpoint("gpt2-small", GPT2_SMALL)
        with self._compared(checkpoint, GPT2_SMALL.vocab_size) as handles:
            self._own(handles)
        self._narrow()
        self._fresh_processes()
        self._quality()
        return self._finished()

    def compare(self, checkpoint: Path, vocab_size: int) -> dict[str, Any]:
        """Measures only what other runtimes have too: the rates, the memory and the first token of a checkpoint."""
        self._begin()
        with self._compared(checkpoint, vocab_size):
            pass
        self._fresh_processes()
        return self._finished()

    def _begin(self) -> None:
        config = self.config
        self.record = {
            **machine(),
            "threads": config.threads,
            "config": {
                "prompt_tokens": config.prompt_tokens,
                "tokens": config.tokens,
                "batch_size": config.batch_size,
                "repeats": config.repeats,
            },
            "runtimes": {},
            "own": {},
        }

    def _finished(self) -> dict[str, Any]:
        for entry in self.record["runtimes"].values():
            for found in entry["dtypes"].values():
                found.pop("path", None)  # describes this machine, not the runtime
        return self.record

    @contextmanager
    def _compared(self, checkpoint: Path, vocab_size: int) -> Iterator[dict[tuple[str, str], Handle]]:
        """Opens the runtimes, checks and times them, and leaves them open inside the `with` block."""
        with ExitStack() as stack:
            handles = self._open_all(checkpoint, vocab_size, stack)
            self._check(handles)
            self._rounds(handles)
            yield handles

    def _checkpoint(self, name: str, shape: Shape) -> Path:
        folder = self.config.work / name
        if not (folder / "config.json").exists():
            log(f"writing {name}")
            write_checkpoint(folder, shape)
        return folder

    def _open_all(self, checkpoint: Path, vocab_size: int, stack: ExitStack) -> dict[tuple[str, str], Handle]:
        """Loads and warms up every runtime at every dtype, and takes its peak memory before anything else runs."""
        config, handles = self.config, {}
        converted = config.work / "converted" / checkpoint.name
        converted.mkdir(parents=True, exist_ok=True)
        for name in config.runtimes:
            version = installed_version(name)
            distribution = peer(name).DISTRIBUTION
            entry = {"version": version, "distribution": distribution, "dtypes": {}}
            self.record["runtimes"][name] = entry
            if version is None:
                entry["problem"] = f"{distribution} is not installed"
                continue
            entry["installed_bytes"] = installed_bytes(distribution, *peer(name).NEEDS)
            for dtype in [dtype for dtype in config.dtypes if dtype in peer(name).DTYPES]:
                log(f"{name} {dtype}: opening")
                entry["dtypes"][dtype] = found = {}
                try:
                    with Handle(name, config.threads) as maker:
                        path = maker.ask("prepare", checkpoint=str(checkpoint), dtype=dtype, folder=str(converted))
                    found["path"] = path["path"]
                    handle = stack.enter_context(Handle(name, config.threads))
                    handle.ask(
                        "open",
                        path=path["path"],
                        dtype=dtype,
                        threads=config.threads,
                        vocab_size=vocab_size,
                    )
                    n = min(config.prompt_tokens, PROBE_TOKENS)
                    seconds = min(handle.ask("prefill", n_tokens=n)["seconds"] for _ in range(2))
                    if seconds * config.prompt_tokens / n > TOO_SLOW_S:
                        raise WorkerError(f"a prefill of {n} took {seconds:.1f} s: too slow to benchmark")
                    handle.ask("prefill", n_tokens=config.prompt_tokens)
                    handle.ask("decode", n_sequences=1, n_tokens=2)
                    found["peak_bytes"] = handle.ask("peak")["bytes"]
                except WorkerError as error:
                    found["problem"] = str(error)
                else:
                    handles[name, dtype] = handle
        return handles

    def _check(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Compares the logits of a prompt and the tokens of a batch with the reference's."""
        config = self.config
        reference = next((name for name in REFERENCES if (name, "f32") in handles), None)
        self.record["reference"] = reference
        if reference is None:
            return
        log(f"comparing with {reference} f32")
        expected = self._logits(handles[reference, "f32"])
        for (name, dtype), handle in handles.items():
            found = self.record["runtimes"][name]["dtypes"][dtype]
            try:
                difference = self._logits(handle) - expected
                tokens = handle.ask("decode", n_sequences=config.batch_size, n_tokens=4)["tokens"]
                some = np.linspace(0, config.batch_size - 1, CHECKED_SEQUENCES, dtype=int).tolist()
                chosen = {seed: tokens[seed] for seed in some}
                gaps = handles[reference, "f32"].ask("gaps", tokens=chosen)["gaps"]
            except WorkerError as error:
                found["problem"] = str(error)
                continue
            found["logits_error"] = float(np.sqrt(np.mean(difference**2)) / expected.std())
            found["greedy_gap"] = max(gaps)
            within = [found["logits_error"] <= LOGITS_TOLERANCE[dtype], found["greedy_gap"] <= GAP_TOLERANCE[dtype]]
            found["agrees"] = all(within)  # NaN fails both

    def _logits(self, handle: Handle) -> np.ndarray:
        file = self.config.work / "logits.npy"
        handle.ask("logits", n_tokens=CHECK_TOKENS, file=str(file))
        return np.load(file)

    def _rounds(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Times decode, prefill and batched decode, in `repeats` rounds of all runtimes and dtypes."""
        config = self.config
        requests = {
            "decode_tok_s": ("decode", {"n_sequences": 1, "n_tokens": config.tokens}, config.tokens),
            "prefill_tok_s": ("prefill", {"n_tokens": config.prompt_tokens}, config.prompt_tokens),
            "batch_decode_tok_s": (
                "decode",
                {"n_sequences": config.batch_size, "n_tokens": config.tokens},
                config.batch_size * config.tokens,
            ),
        }
        rates: dict[tuple[str, str, str], list[float]] = {}
        read: dict[str, list[float]] = {}
        by_dtype = sorted(handles, key=lambda key: config.dtypes.index(key[1]))
        for i in range(config.repeats):
            log(f"round {i + 1} of {config.repeats}")
            for what, (do, arguments, n_tokens) in requests.items():
                for name, dtype in by_dtype:
                    found = self.record["runtimes"][name]["dtypes"][dtype]
                    if "problem" in found:
                        continue
                    time.sleep(SETTLE_S)
                    try:
                        seconds = handles[name, dtype].ask(do, **arguments)["seconds"]
                        rates.setdefault((name, dtype, what), []).append(n_tokens / seconds)
                        if (name, do) == ("rushlight", "decode"):
                            answer = handles[name, dtype].ask("own", what="bandwidth")
                            read.setdefault(dtype, []).append(answer["bytes"] / answer["seconds"] / 1e9)
                            self.record["own"].setdefault("step_bytes", {})[dtype] = answer["bytes"]
                            self.record["own"]["reader"] = answer["reader"]
                    except WorkerError as error:
                        found["problem"] = str(error)
        for (name, dtype, what), values in rates.items():
            self.record["runtimes"][name]["dtypes"][dtype][what] = Repeats.of(values).to_json()
        self.record["own"]["bandwidth_gb_s"] = {dtype: Repeats.of(values).to_json() for dtype, values in read.items()}

    def _own(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Measures rushlight's memory, engine and sampling, with the model loaded."""
        own = self.record["own"]
        own["memory"] = {}
        for (name, dtype), handle in handles.items():
            if name != "rushlight" or "problem" in self.record["runtimes"][name]["dtypes"][dtype]:
                continue
            own["memory"][dtype] = handle.ask("own", what="memory", n_tokens=self.config.prompt_tokens)
            if dtype == "f32":
                arguments = {
                    "n_tokens": ENGINE_TOKENS,
                    "n_sequences": self.config.batch_size,
                    "repeats": self.config.repeats,
                }
                own["engine"] = {
                    name: Repeats.of(ratios).to_json()
                    for name, ratios in handle.ask("own", what="engine", **arguments).items()
                }
            if "sampling_s" not in own:
                own["sampling_s"] = Repeats.of(handle.ask("own", what="sampling", n=20)["seconds"]).to_json()

    def _narrow(self) -> None:
        """Times a step of NARROW: the overhead of the calls."""
        if "rushlight" not in self.config.runtimes:
            return
        log("calls")
        checkpoint = self._checkpoint("narrow", NARROW)
        self.record["own"]["calls_s"] = calls = {}
        for dtype in self.config.dtypes:
            with Handle("rushlight", self.config.threads) as handle:
                try:
                    handle.ask(
                        "open",
                        path=str(checkpoint),
                        dtype=dtype,
                        threads=self.config.threads,
                        vocab_size=NARROW.vocab_size,
                    )
                    handle.ask("decode", n_sequences=1, n_tokens=8)
                    steps = [handle.ask("decode", n_sequences=1, n_tokens=100) for _ in range(self.config.repeats)]
                except WorkerError:
                    continue  # reported with the dtype's own results
                calls[dtype] = Repeats.of(step["seconds"] / 100 for step in steps).to_json()

    def _fresh_processes(self) -> None:
        """Times fresh processes: first token, import and `--help`, with a bare Python to compare with."""
        config, runtimes, own = self.config, self.record["runtimes"], self.record["own"]
        commands = {"bare_python_s": ["-c", "pass"]}
        if "rushlight" in config.runtimes:
            commands["import_s"] = ["-c", "import rushlight"]
            commands["help_s"] = ["-m", "rushlight", "--help"]
        for name, entry in runtimes.items():
            found = entry["dtypes"].get("f32", {})
            if "path" in found and "problem" not in found:
                arguments = [name, found["path"], "f32", str(config.threads)]
                commands[name] = ["-m", "benchmarks.first_token", *arguments]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        # The first round fills the page cache and is not counted.
        for i in range(config.repeats + 1):
            log(f"fresh processes, round {i} of {config.repeats}")
            for name, arguments in commands.items():
                time.sleep(SETTLE_S)
                run = run_fresh([sys.executable, *arguments], env=environment(config.threads), cwd=ROOT)
                elapsed_s = run.first_output_s if name in runtimes else run.total_s
                if run.exit_code or elapsed_s is None:
                    last = (run.errors.strip().splitlines() or ["no output"])[-1]
                    runtimes.get(name, own)[f"{name} in a fresh process"] = f"ended with {run.exit_code}: {last}"
                elif i:
                    seconds[name].append(elapsed_s)
        for name, values in seconds.items():
            if values and name in runtimes:
                runtimes[name]["dtypes"]["f32"]["first_token_s"] = Repeats.of(values).to_json()
            elif values:
                own[name] = Repeats.of(values).to_json()

    def _quality(self) -> None:
        """The loss of the embedded model on held-out text, at each dtype."""
        if self.config.held_out is None or "rushlight" not in self.config.runtimes:
            return
        log("quality")
        self.record["own"]["loss"] = losses = {}
        for dtype in self.config.dtypes:
            with Handle("rushlight", self.config.threads) as handle:
                try:
                    handle.ask("open", path="", dtype=dtype, threads=self.config.threads, vocab_size=1)
                    answer = handle.ask("own", what="loss", file=str(self.config.held_out.resolve()), n_windows=24)
                except WorkerError:
                    continue  # reported with the dtype's own results
                losses[dtype] = answer["loss"]


def log(text: str) -> None:
    """Writes progress to stderr."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()
