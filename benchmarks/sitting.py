"""One sitting: every runtime at every dtype in a process of its own, all asked in turn, round after round.

Machines drift by tens of percent within minutes, so nothing is measured to its end before the next is begun: a ratio is
taken between neighbours of one round.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.checkpoint import GPT2_SMALL, Shape, write_checkpoint
from benchmarks.handle import ROOT, Handle, WorkerError, environment
from benchmarks.peers import PEERS, installed_version, peer
from benchmarks.sizes import installed_bytes
from rushlight.bench import Sample, machine
from rushlight.bench.process import run_fresh

if TYPE_CHECKING:
    from pathlib import Path

SETTLE_S = 0.05
"""Before each measurement: the threads of the one before may still be spinning."""

PROBE_TOKENS = 32
TOO_SLOW_S = 20
"""A prefill that would take longer, going by one of PROBE_TOKENS, would take up the sitting: it is left out."""

CHECKED_SEQUENCES = 4
"""Of the batch, whose tokens the yardstick looks at: the first, the last and two between."""

CHECK_TOKENS = 64
"""Length of the prompt whose logits are compared."""

LOGITS_TOLERANCE = {"f32": 0.002, "f16": 0.004, "bf16": 0.03, "int8": 0.14, "int4": 0.5}
"""Root mean square of the difference from the yardstick's logits, in standard deviations of the logits.

About twice the most that was observed, or a little more. llama.cpp keeps keys and values in f16, which shows in f32;
CTranslate2's int8 has one scale a row, where others have one for 32 weights.
"""

GAP_TOLERANCE = {"f32": 0.01, "f16": 0.02, "bf16": 0.1, "int8": 0.4, "int4": 1.5}
"""How far a greedily decoded token may lie below the yardstick's choice, in standard deviations of its logits."""

ENGINE_TOKENS = 200
"""Of the texts that the engine writes with guesses and without."""

YARDSTICKS = ("transformers", "rushlight")
"""Whose float32 logits the others are compared with: the first that is there."""

NARROW = Shape(n_embd=64, n_head=1, n_positions=512, vocab_size=256)
"""As many calls a step as GPT2_SMALL, and next to nothing to compute: what a step costs beside its arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and where to keep what is made for it."""

    work: Path
    runtimes: tuple[str, ...] = tuple(PEERS)
    dtypes: tuple[str, ...] = ("f32", "bf16", "f16", "int8", "int4")
    threads: int = 2
    repeats: int = 5
    prompt_tokens: int = 512
    tokens: int = 32
    together: int = 16
    held_out: Path | None = None


@dataclass
class Sitting:
    """Measures what a plan says; `record` is the whole result, as JSON has it."""

    plan: Plan
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measures everything. A runtime that fails is recorded with its words, and the others go on."""
        plan = self.plan
        self.record = {
            **machine(),
            "threads": plan.threads,
            "plan": {
                "prompt_tokens": plan.prompt_tokens,
                "tokens": plan.tokens,
                "together": plan.together,
                "repeats": plan.repeats,
            },
            "runtimes": {},
            "own": {},
        }
        checkpoint = self._checkpoint("gpt2-small", GPT2_SMALL)
        with ExitStack() as stack:
            handles = self._open_all(checkpoint, stack)
            self._check(handles)
            self._rounds(handles)
            self._own(handles)
        self._narrow()
        self._fresh_processes()
        self._quality()
        for entry in self.record["runtimes"].values():
            for found in entry["dtypes"].values():
                found.pop("path", None)  # tells nothing of the runtime, and much of the machine
        return self.record

    def _checkpoint(self, name: str, shape: Shape) -> Path:
        folder = self.plan.work / name
        if not (folder / "config.json").exists():
            say(f"writing {name}")
            write_checkpoint(folder, shape)
        return folder

    def _open_all(self, checkpoint: Path, stack: ExitStack) -> dict[tuple[str, str], Handle]:
        """Every runtime at every dtype, loaded and run once; peak memory is taken here, before much else is asked."""
        plan, handles = self.plan, {}
        for name in plan.runtimes:
            version = installed_version(name)
            distribution = peer(name).DISTRIBUTION
            entry = {"version": version, "distribution": distribution, "dtypes": {}}
            self.record["runtimes"][name] = entry
            if version is None:
                entry["problem"] = f"{distribution} is not installed"
                continue
            entry["installed_bytes"] = installed_bytes(distribution, *peer(name).NEEDS)
            for dtype in [dtype for dtype in plan.dtypes if dtype in peer(name).DTYPES]:
                say(f"{name} {dtype}: opening")
                entry["dtypes"][dtype] = found = {}
                try:
                    with Handle(name, plan.threads) as maker:
                        path = maker.ask("prepare", checkpoint=str(checkpoint), dtype=dtype, folder=str(plan.work))
                    found["path"] = path["path"]
                    handle = stack.enter_context(Handle(name, plan.threads))
                    handle.ask(
                        "open",
                        path=path["path"],
                        dtype=dtype,
                        threads=plan.threads,
                        vocab_size=GPT2_SMALL.vocab_size,
                    )
                    n = min(plan.prompt_tokens, PROBE_TOKENS)
                    seconds = min(handle.ask("prefill", n_tokens=n)["seconds"] for _ in range(2))
                    if seconds * plan.prompt_tokens / n > TOO_SLOW_S:
                        raise WorkerError(f"a prefill of {n} took {seconds:.1f} s: too slow to measure more")
                    handle.ask("prefill", n_tokens=plan.prompt_tokens)
                    handle.ask("decode", n_sequences=1, n_tokens=2)
                    found["peak_bytes"] = handle.ask("peak")["bytes"]
                except WorkerError as error:
                    found["problem"] = str(error)
                else:
                    handles[name, dtype] = handle
        return handles

    def _check(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Compares logits, and the tokens of a batch, with the yardstick's."""
        plan = self.plan
        yardstick = next((name for name in YARDSTICKS if (name, "f32") in handles), None)
        self.record["yardstick"] = yardstick
        if yardstick is None:
            return
        say(f"comparing with {yardstick} f32")
        expected = self._logits(handles[yardstick, "f32"])
        for (name, dtype), handle in handles.items():
            found = self.record["runtimes"][name]["dtypes"][dtype]
            try:
                difference = self._logits(handle) - expected
                tokens = handle.ask("decode", n_sequences=plan.together, n_tokens=4)["tokens"]
                some = np.linspace(0, plan.together - 1, CHECKED_SEQUENCES, dtype=int).tolist()
                chosen = {seed: tokens[seed] for seed in some}
                gaps = handles[yardstick, "f32"].ask("gaps", tokens=chosen)["gaps"]
            except WorkerError as error:
                found["problem"] = str(error)
                continue
            found["logits_error"] = float(np.sqrt(np.mean(difference**2)) / expected.std())
            found["greedy_gap"] = max(gaps)
            within = [found["logits_error"] <= LOGITS_TOLERANCE[dtype], found["greedy_gap"] <= GAP_TOLERANCE[dtype]]
            found["agrees"] = all(within)  # a NaN is within nothing

    def _logits(self, handle: Handle) -> np.ndarray:
        file = self.plan.work / "logits.npy"
        handle.ask("logits", n_tokens=CHECK_TOKENS, file=str(file))
        return np.load(file)

    def _rounds(self, handles: dict[tuple[str, str], Handle]) -> None:
        """Decode, prefill, several together: for each dtype, all runtimes one after the other, `repeats` times."""
        plan = self.plan
        requests = {
            "decode_tok_s": ("decode", {"n_sequences": 1, "n_tokens": plan.tokens}, plan.tokens),
            "prefill_tok_s": ("prefill", {"n_tokens": plan.prompt_tokens}, plan.prompt_tokens),
            "together_tok_s": (
                "decode",
                {"n_sequences": plan.together, "n_tokens": plan.tokens},
                plan.together * plan.tokens,
            ),
        }
        rates: dict[tuple[str, str, str], list[float]] = {}
        read: dict[str, list[float]] = {}
        by_dtype = sorted(handles, key=lambda key: plan.dtypes.index(key[1]))
        for i in range(plan.repeats):
            say(f"round {i + 1} of {plan.repeats}")
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
                            told = handles[name, dtype].ask("own", what="bandwidth")
                            read.setdefault(dtype, []).append(told["bytes"] / told["seconds"] / 1e9)
                            self.record["own"].setdefault("step_bytes", {})[dtype] = told["bytes"]
                            self.record["own"]["reader"] = told["reader"]
                    except WorkerError as error:
                        found["problem"] = str(error)
        for (name, dtype, what), values in rates.items():
            self.record["runtimes"][name]["dtypes"][dtype][what] = Sample.of(values).to_json()
        self.record["own"]["bandwidth_gb_s"] = {dtype: Sample.of(values).to_json() for dtype, values in read.items()}

    def _own(self, handles: dict[tuple[str, str], Handle]) -> None:
        """What is measured of rushlight alone, with the model loaded."""
        own = self.record["own"]
        own["memory"] = {}
        for (name, dtype), handle in handles.items():
            if name != "rushlight" or "problem" in self.record["runtimes"][name]["dtypes"][dtype]:
                continue
            own["memory"][dtype] = handle.ask("own", what="memory", n_tokens=self.plan.prompt_tokens)
            if dtype == "f32":
                arguments = {"n_tokens": ENGINE_TOKENS, "n_sequences": self.plan.together, "repeats": self.plan.repeats}
                own["engine"] = {
                    name: Sample.of(ratios).to_json()
                    for name, ratios in handle.ask("own", what="engine", **arguments).items()
                }
            if "sampling_s" not in own:
                own["sampling_s"] = Sample.of(handle.ask("own", what="sampling", n=20)["seconds"]).to_json()

    def _narrow(self) -> None:
        """A step of a model with as many calls and no arithmetic to speak of."""
        if "rushlight" not in self.plan.runtimes:
            return
        say("calls")
        checkpoint = self._checkpoint("narrow", NARROW)
        self.record["own"]["calls_s"] = calls = {}
        for dtype in self.plan.dtypes:
            with Handle("rushlight", self.plan.threads) as handle:
                try:
                    handle.ask(
                        "open",
                        path=str(checkpoint),
                        dtype=dtype,
                        threads=self.plan.threads,
                        vocab_size=NARROW.vocab_size,
                    )
                    handle.ask("decode", n_sequences=1, n_tokens=8)
                    steps = [handle.ask("decode", n_sequences=1, n_tokens=100) for _ in range(self.plan.repeats)]
                except WorkerError:
                    continue  # the dtype's own row says why
                calls[dtype] = Sample.of(step["seconds"] / 100 for step in steps).to_json()

    def _fresh_processes(self) -> None:
        """From a process's start to its first token; and what importing and `--help` cost over a bare Python."""
        plan, runtimes, own = self.plan, self.record["runtimes"], self.record["own"]
        commands = {"bare_python_s": ["-c", "pass"]}
        if "rushlight" in plan.runtimes:
            commands["import_s"] = ["-c", "import rushlight"]
            commands["help_s"] = ["-m", "rushlight", "--help"]
        for name, entry in runtimes.items():
            found = entry["dtypes"].get("f32", {})
            if "path" in found and "problem" not in found:
                arguments = [name, found["path"], "f32", str(plan.threads)]
                commands[name] = ["-m", "benchmarks.first_token", *arguments]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        # One more round than asked: the first fills the page cache, and is not counted.
        for i in range(plan.repeats + 1):
            say(f"fresh processes, round {i} of {plan.repeats}")
            for name, arguments in commands.items():
                time.sleep(SETTLE_S)
                run = run_fresh([sys.executable, *arguments], env=environment(plan.threads), cwd=ROOT)
                told = run.first_output_s if name in runtimes else run.total_s
                if run.exit_code or told is None:
                    last = (run.errors.strip().splitlines() or ["no output"])[-1]
                    runtimes.get(name, own)[f"{name} in a fresh process"] = f"ended with {run.exit_code}: {last}"
                elif i:
                    seconds[name].append(told)
        for name, values in seconds.items():
            if values and name in runtimes:
                runtimes[name]["dtypes"]["f32"]["first_token_s"] = Sample.of(values).to_json()
            elif values:
                own[name] = Sample.of(values).to_json()

    def _quality(self) -> None:
        """The loss of the embedded model on a text that it was not trained on, at each dtype."""
        if self.plan.held_out is None or "rushlight" not in self.plan.runtimes:
            return
        say("quality")
        self.record["own"]["loss"] = losses = {}
        for dtype in self.plan.dtypes:
            with Handle("rushlight", self.plan.threads) as handle:
                try:
                    handle.ask("open", path="", dtype=dtype, threads=self.plan.threads, vocab_size=1)
                    told = handle.ask("own", what="loss", file=str(self.plan.held_out.resolve()), n_windows=24)
                except WorkerError:
                    continue  # the dtype's own row says why
                losses[dtype] = told["loss"]


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()
