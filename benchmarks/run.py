"""The benchmark run of a model: each runtime and format in its own process, measured in interleaved rounds.

The speed of a machine drifts by tens of percent within minutes, so every round measures all runtimes, ratios are taken
within a round, and what the machine reads and computes at that moment is measured next to everything.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cells import BATCH_SIZE, SELDOM, Cell, cells
from benchmarks.checkpoint import Shape, write_checkpoint
from benchmarks.handle import ROOT, Handle, WorkerError, environment
from benchmarks.limits import Limits, Probe
from benchmarks.peers import PEERS, SLOW, installed_version, peer
from benchmarks.sizes import installed_bytes
from rushlight.bench import Repeats, machine
from rushlight.bench.process import run_fresh

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.models import BenchmarkModel

DTYPES = ("f32", "f16", "bf16", "int8", "int4")

SETTLE_S = 0.05
"""Pause before each measurement: the threads of the previous one may still be spinning."""

PROBE_TOKENS = 32
TOO_SLOW_S = 30
"""A runtime whose prefill of 512 would take longer, estimated from PROBE_TOKENS, is left out."""

CHECKED_SEQUENCES = 4
"""Sequences of the batch whose tokens the reference checks: the first, the last and two in between."""

CHECK_TOKENS = 64
"""Length of the prompt whose logits are compared."""

LOGITS_TOLERANCE = {"f32": 0.002, "f16": 0.01, "bf16": 0.06, "int8": 0.35, "int4": 0.8}
"""Root mean square of the difference from the reference's logits, in standard deviations of the logits.

Above the differences observed, by a third and more: a wrong computation differs by 1 and more. llama.cpp keeps keys and
values in f16, which shows in f32; CTranslate2's int8 has one scale per row, the others one per 32 weights. Trained
weights differ more than random ones.
"""

GAP_TOLERANCE = {"f32": 0.01, "f16": 0.03, "bf16": 0.2, "int8": 1.0, "int4": 2.0}
"""How far the logit of a greedily decoded token may lie below the reference's maximum, in standard deviations."""

ENGINE_TOKENS, ENGINE_ROUNDS = 200, 3
"""Length of the completions that the engine generates with and without speculative decoding, and how often."""

FRESH_ROUNDS = 5
"""Rounds of fresh processes; less often than other cells, because most of them load a library for seconds."""

REFERENCES = (("transformers", "float32"), ("rushlight", "f32"))
"""The first of these that runs gives the logits to compare with."""

NARROW = Shape(n_embd=64, n_head=1, n_positions=512, vocab_size=256)
"""As many calls per step as GPT-2 small, but hardly any arithmetic: measures the overhead of a step."""

ITEM_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "int8": 1.1, "int4": 0.7}
LEFT_BYTES = 2_000_000_000
"""Memory that stays available when a runtime is opened."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The workload to measure, and the folder that keeps the checkpoints.

    Attributes:
        repeats: the number of rounds.
        minutes: no round of a model begins after so many minutes; a part of its dtypes has its share of them.
    """

    work: Path
    runtimes: tuple[str, ...] = tuple(PEERS)
    dtypes: tuple[str, ...] = DTYPES
    threads: int = 2
    repeats: int = 9
    tokens: int = 32
    held_out: Path | None = None
    minutes: float | None = None


@dataclass
class BenchmarkRun:
    """Measures a model.

    Attributes:
        config, model: what to measure.
        save: called with the record after every round.
        record: the result, ready for JSON. One that is given is continued, if it has the same workload.
    """

    config: RunConfig
    model: BenchmarkModel
    save: Callable[[dict[str, Any]], None] = lambda _: None
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measures what the record lacks. A runtime that fails is recorded with its error, and the others continue."""
        self._begin()
        began, groups = time.monotonic(), self._groups()
        for i, group in enumerate(groups):
            if self.record["rounds"].get(",".join(group), 0) < self.config.repeats:
                share = (i + 1) / len(groups)
                until = began + 60 * share * self.config.minutes if self.config.minutes else float("inf")
                self._measure_group(group, until)
        for step in (self._fresh_processes, *((self._narrow, self._quality) if self._is_gpt2() else ())):
            if step.__name__ not in self.record["done"]:
                step()
                self.record["done"].append(step.__name__)
                self.save(self.record)
        self.record["complete"] = True
        self.save(self.record)
        return self.record

    def prepare(self) -> None:
        """Converts the checkpoint for every runtime, which later runs find."""
        self._begin()
        for name, form, _ in self._formats(self.config.dtypes):
            log(f"{self.model.name}: converting for {name} {form}")
            try:
                self._path(name, form)
            except WorkerError as error:
                log(f"{name} {form}: {error}")

    def _begin(self) -> None:
        config, model = self.config, self.model
        workload = {
            "repeats": config.repeats,
            "tokens": config.tokens,
            "runtimes": list(config.runtimes),
            "dtypes": list(config.dtypes),
            "threads": config.threads,
        }
        self._cells = cells(model, config.tokens)
        self._probe = Probe(config.threads)
        self._converted = config.work / "converted" / model.folder.name
        self._converted.mkdir(parents=True, exist_ok=True)
        if self.record.get("config") == workload and not self.record.get("complete"):
            return
        self.record.clear()
        self.record |= {
            **machine(),
            "title": model.title,
            "weights": model.weights,
            "context": model.context,
            "threads": config.threads,
            "config": workload,
            "cells": {name: cell.title for name, cell in self._cells.items()},
            "work": {name: cell.work() for name, cell in self._cells.items()},
            "complete": False,
            "rounds": {},
            "done": [],
            "runtimes": {},
            "own": {"memory": {}, "sizes": {}},
        }
        for name in config.runtimes:
            version, distribution = installed_version(name), peer(name).DISTRIBUTION
            entry = {"version": version, "distribution": distribution, "formats": {}}
            self.record["runtimes"][name] = entry
            if version is None:
                entry["problem"] = f"{distribution} is not installed"
            else:
                entry["installed_bytes"] = installed_bytes(distribution, *peer(name).NEEDS)

    def _is_gpt2(self) -> bool:
        """Whether to measure what does not depend on the model, too."""
        return self.model.name == "gpt2" and "rushlight" in self.config.runtimes

    def _groups(self) -> list[tuple[str, ...]]:
        """The dtypes that are in memory at once, and compared within rounds.

        int8 comes first: the runtime that opens first computes the long contexts that others of its kind read.
        """
        wanted = [dtype for dtype in ("int8", "int4", "f16", "bf16", "f32") if dtype in self.config.dtypes]
        if not self.model.is_large:
            return [tuple(wanted)]
        pairs = [("int8", "int4"), ("f16", "bf16"), ("f32",)]
        return [found for pair in pairs if (found := tuple(dtype for dtype in pair if dtype in wanted))]

    # the rounds

    def _measure_group(self, group: tuple[str, ...], until: float) -> None:
        """Opens the runtimes at these dtypes, checks and times them; no round but the first begins after `until`."""
        with ExitStack() as stack:
            handles = self._open_all(group, stack)
            self._check(handles)
            self._warm_up(handles)
            self._own(handles)
            self._rounds(group, handles, until)

    def _formats(self, group: tuple[str, ...]) -> list[tuple[str, str, str]]:
        """Runtimes, their formats and the dtypes that these are compared with."""
        return [
            (name, form, dtype)
            for wanted in group
            for name, entry in self.record["runtimes"].items()
            if entry["version"] is not None
            for form, dtype in peer(name).FORMATS.items()
            if dtype == wanted
        ]

    def _open_all(self, group: tuple[str, ...], stack: ExitStack) -> dict[tuple[str, str], Handle]:
        """Loads and warms up every runtime, and takes its peak memory before anything else runs."""
        handles = {}
        for name, form, dtype in self._formats(group):
            log(f"{self.model.name}: opening {name} {form}")
            found = self._entry(name, form)
            found.pop("problem", None)
            found["dtype"] = dtype
            try:
                handle = self._opened(name, form, dtype, stack)
                n = min(512, self.model.context)
                few = min(n, PROBE_TOKENS)
                seconds = min(handle.ask("prefill", n_tokens=few)["seconds"] for _ in range(2))
                if seconds * n / few > TOO_SLOW_S:
                    raise WorkerError(f"a prefill of {few} took {seconds:.1f} s: too slow to measure more")
                handle.ask("prefill", n_tokens=n)
                handle.ask("decode", n_sequences=1, n_tokens=2)
                found["peak_bytes"] = handle.ask("peak")["bytes"]
                found["computes"] = handle.ask("computes")["computes"]
            except WorkerError as error:
                found["problem"] = str(error)
            else:
                handles[name, form] = handle
        return handles

    def _opened(self, name: str, form: str, dtype: str, stack: ExitStack) -> Handle:
        """A process that has loaded the model, converted if necessary.

        Raises:
            WorkerError: it cannot be converted or loaded, or the machine lacks the memory.
        """
        threads = self.config.threads
        path = self._path(name, form)
        need = self.model.n_parameters * ITEM_BYTES[dtype] * (1.5 if name == "OpenVINO" else 1)
        if (have := available_bytes()) < need + LEFT_BYTES:
            raise WorkerError(f"it needs {need / 1e9:.1f} GB of memory, and {have / 1e9:.1f} GB are available")
        handle = stack.enter_context(Handle(name, threads))
        handle.ask("open", path=path, form=form, threads=threads, vocab_size=self.model.vocab_size)
        return handle

    def _path(self, name: str, form: str) -> str:
        """Converts the model if necessary, in a process of its own, which peak memory must not include."""
        with Handle(name, self.config.threads) as maker:
            checkpoint, folder = str(self.model.folder), str(self._converted)
            return maker.ask("prepare", checkpoint=checkpoint, form=form, folder=folder)["path"]

    def _entry(self, name: str, form: str) -> dict[str, Any]:
        return self.record["runtimes"][name]["formats"].setdefault(form, {})

    def _check(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Compares the logits of a prompt and the tokens of a batch with the reference's."""
        reference = self._reference()
        self.record["reference"] = reference and reference[0]
        if reference is None:
            return
        log(f"{self.model.name}: comparing with {' '.join(reference)}")
        with ExitStack() as stack:
            judge = handles.get(reference)
            try:
                judge = judge or self._opened(*reference, "f32", stack)
                expected = self._logits(judge)
            except WorkerError as error:
                self.record["reference"] = None
                log(f"{reference[0]}: {error}")
                return
            for (name, form), handle in handles.items():
                self._check_one(self._entry(name, form), handle, judge, expected)

    def _check_one(self, found: dict[str, Any], handle: Handle, judge: Handle, expected: np.ndarray) -> None:
        try:
            difference = self._logits(handle) - expected
            tokens = handle.ask("decode", n_sequences=BATCH_SIZE, n_tokens=4)["tokens"]
            some = np.linspace(0, BATCH_SIZE - 1, CHECKED_SEQUENCES, dtype=int).tolist()
            gaps = judge.ask("gaps", tokens={seed: tokens[seed] for seed in some})["gaps"]
        except WorkerError as error:
            found["problem"] = str(error)
            return
        found["logits_error"] = float(np.sqrt(np.mean(difference**2)) / expected.std())
        found["greedy_gap"] = max(gaps)
        dtype = found["dtype"]
        within = [found["logits_error"] <= LOGITS_TOLERANCE[dtype], found["greedy_gap"] <= GAP_TOLERANCE[dtype]]
        found["agrees"] = all(within)  # NaN fails both

    def _reference(self) -> tuple[str, str] | None:
        runtimes = self.record["runtimes"]
        installed = [each for each in REFERENCES if runtimes.get(each[0], {}).get("version") is not None]
        return next(iter(installed), None)

    def _logits(self, handle: Handle) -> np.ndarray:
        file = self.config.work / "logits.npy"
        handle.ask("logits", n_tokens=min(CHECK_TOKENS, self.model.context - 1), file=str(file))
        return np.load(file)

    def _has(self, name: str, cell: Cell) -> bool:
        if cell.is_long:
            return hasattr(peer(name).Runtime, "decode_at")
        return not (cell.is_long_prompt and name in SLOW)

    def _warm_up(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Computes the long contexts, which are kept."""
        for (name, form), handle in handles.items():
            for cell in self._cells.values():
                if cell.is_long and self._has(name, cell):
                    log(f"{self.model.name}: {name} {form}: {cell.title}")
                    try:
                        handle.ask(cell.do, **cell.arguments)
                    except WorkerError as error:
                        self._entry(name, form)["problem"] = str(error)

    def _rounds(self, group: tuple[str, ...], handles: dict[tuple[str, str], Handle], until: float) -> None:
        """Times every cell that is due, in rounds of all runtimes."""
        rounds, key = self.record["rounds"], ",".join(group)
        began, first = time.perf_counter(), rounds.get(key, 0)
        for i in range(first, self.config.repeats):
            if i and time.monotonic() > until:
                log(f"{self.model.name} {key}: {i} rounds in {self.config.minutes:g} minutes")
                break
            left = ""
            if i > first:
                minutes = (time.perf_counter() - began) / (i - first) * (self.config.repeats - i) / 60
                left = f", about {minutes:.1f} min left of these dtypes"
            log(f"{self.model.name} {key}: round {i + 1} of {self.config.repeats}{left}")
            for name, cell in self._cells.items():
                if i % cell.every == 0:
                    self._measure_cell(i, name, cell, handles)
            rounds[key] = i + 1
            self.save(self.record)

    def _measure_cell(self, i: int, name: str, cell: Cell, handles: dict[tuple[str, str], Handle]) -> None:
        for (runtime, form), handle in handles.items():
            found = self._entry(runtime, form)
            if "problem" in found or not self._has(runtime, cell) or (runtime in SLOW and i % SELDOM):
                continue
            before = self._probe.limits(found["dtype"])
            time.sleep(SETTLE_S)
            sample: dict[str, float] = {}
            try:
                sample["tok_s"] = cell.n_tokens / handle.ask(cell.do, **cell.arguments)["seconds"]
                after = self._probe.limits(found["dtype"])
                if runtime == "rushlight" and name == "decode":
                    reading = handle.ask("own", what="bandwidth")
                    sample["weights_gb_s"] = reading["bytes"] / reading["seconds"] / 1e9
                    self.record["own"]["reader"] = reading["reader"]
            except WorkerError as error:
                found["problem"] = str(error)
                continue
            for what, both in zip(Limits._fields, zip(before, after, strict=True), strict=True):
                sample[what] = sum(both) / 2
            samples = found.setdefault("cells", {}).setdefault(name, {})
            for what, value in {"rounds": i, **sample}.items():
                samples.setdefault(what, []).append(float(f"{value:.5g}") if what != "rounds" else value)

    # what only rushlight has, and what needs no rounds

    def _own(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Measures rushlight's memory and sizes, and with GPT-2 its engine and sampling."""
        own = self.record["own"]
        for (name, dtype), handle in handles.items():
            if name != "rushlight" or "problem" in self._entry(name, dtype):
                continue
            try:
                self._own_of(dtype, handle)
            except WorkerError as error:
                own.setdefault("problems", {})[f"rushlight {dtype}"] = str(error)

    def _own_of(self, dtype: str, handle: Handle) -> None:
        own = self.record["own"]
        own["memory"][dtype] = handle.ask("own", what="memory", n_tokens=min(512, self.model.context))
        own["sizes"][dtype] = handle.ask("own", what="sizes")
        if not self._is_gpt2():
            return
        if dtype == "f32" and "engine" not in own:
            log("speculative decoding and batching")
            arguments = {
                "n_tokens": min(ENGINE_TOKENS, self.model.context - 32),
                "n_sequences": BATCH_SIZE,
                "repeats": min(self.config.repeats, ENGINE_ROUNDS),
            }
            found = handle.ask("own", what="engine", **arguments)
            own["engine"] = {what: Repeats.of(ratios).to_json() for what, ratios in found.items()}
        if "sampling_s" not in own:
            own["sampling_s"] = Repeats.of(handle.ask("own", what="sampling", n=20)["seconds"]).to_json()

    def _narrow(self) -> None:
        """Times a step of NARROW: the overhead of the calls."""
        log("calls")
        checkpoint = self.config.work / "narrow"
        if not (checkpoint / "config.json").exists():
            write_checkpoint(checkpoint, NARROW)
        self.record["own"]["calls_s"] = calls = {}
        threads = self.config.threads
        for dtype in self.config.dtypes:
            with Handle("rushlight", threads) as handle:
                try:
                    handle.ask("open", path=str(checkpoint), form=dtype, threads=threads, vocab_size=NARROW.vocab_size)
                    handle.ask("decode", n_sequences=1, n_tokens=8)
                    steps = [handle.ask("decode", n_sequences=1, n_tokens=100) for _ in range(self.config.repeats)]
                except WorkerError:
                    continue  # reported with the dtype's own results
                calls[dtype] = Repeats.of(step["seconds"] / 100 for step in steps).to_json()

    def _fresh_processes(self) -> None:
        """Times fresh processes: first token, import and `--help`, with a bare Python to compare with."""
        config, own = self.config, self.record["own"]
        commands: dict[str, list[str]] = {}
        if self._is_gpt2():
            commands["bare_python_s"] = ["-c", "pass"]
            commands["import_s"] = ["-c", "import rushlight"]
            commands["help_s"] = ["-m", "rushlight", "--help"]
        of: dict[str, tuple[str, str]] = {}
        for name, form, dtype in self._formats(config.dtypes):
            # Every format of the two that are compared in each; of the others one is enough.
            if not self._entry(name, form).get("cells") or (name not in ("rushlight", "llama.cpp") and dtype != "f32"):
                continue
            path = self._path(name, form)
            of[f"{name} {form}"] = name, form
            commands[f"{name} {form}"] = ["-m", "benchmarks.first_token", name, path, form, str(config.threads)]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        # The first round fills the page cache and is not counted.
        for i in range(min(config.repeats, FRESH_ROUNDS) + 1):
            log(f"{self.model.name}: fresh processes, round {i} of {min(config.repeats, FRESH_ROUNDS)}")
            for name, arguments in commands.items():
                if name in of and of[name][0] in SLOW and i > 1:
                    continue
                time.sleep(SETTLE_S)
                run = run_fresh([sys.executable, *arguments], env=environment(config.threads), cwd=ROOT)
                elapsed_s = run.first_output_s if name in of else run.total_s
                if run.exit_code or elapsed_s is None:
                    last = (run.errors.strip().splitlines() or ["no output"])[-1]
                    own.setdefault("problems", {})[f"{name} in a fresh process"] = f"ended with {run.exit_code}: {last}"
                elif i:
                    seconds[name].append(elapsed_s)
        for name, values in seconds.items():
            if values and name in of:
                self._entry(*of[name])["first_token_s"] = Repeats.of(values).to_json()
            elif values:
                own[name] = Repeats.of(values).to_json()

    def _quality(self) -> None:
        """The loss of the embedded model on held-out text, at each dtype."""
        if self.config.held_out is None:
            return
        log("quality")
        self.record["own"]["loss"] = losses = {}
        for dtype in self.config.dtypes:
            with Handle("rushlight", self.config.threads) as handle:
                try:
                    handle.ask("open", path="", form=dtype, threads=self.config.threads, vocab_size=1)
                    answer = handle.ask("own", what="loss", file=str(self.config.held_out.resolve()), n_windows=24)
                except WorkerError:
                    continue  # reported with the dtype's own results
                losses[dtype] = answer["loss"]


def available_bytes() -> int:
    """Memory that can be used without swapping, on Linux; elsewhere the physical memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def log(text: str) -> None:
    """Writes progress to stderr."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()
