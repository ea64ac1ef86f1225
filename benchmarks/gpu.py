"""`python -m benchmarks.gpu`: GPT-2 124M on a GPU beside transformers, eager and compiled, in one run.

Decode is timed as it is used: from the tokens of one step to those of the next on the host. Every runtime decodes the
same prompts greedily; the table says how far the logits after them lie apart. The share of the memory's bandwidth is
that of the bytes which a step cannot do without, weights and the keys and values of the contexts, over what a copy
reaches.

On `--device torch-cpu --tiny` it runs anywhere, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import rushlight
from benchmarks.checkpoint import GPT2_SMALL, Shape, write_checkpoint
from benchmarks.report import MARKS, table
from rushlight.backends.batch import BLOCK_SIZE, Batch, Chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TINY = Shape(n_layer=2, n_embd=64, n_head=2, n_positions=128, vocab_size=300)
RUNTIMES = ("rushlight", "eager", "compiled")
PREFILL_SEQUENCES = 2
"""Prompts that go through rushlight at once."""

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        device: a device word of rushlight's that PyTorch computes.
        dtype: of weights and activations.
        sequences: how many decode together; each number is measured.
        context: the mean number of positions in the cache while decoding.
        tokens: decoded by each sequence in each repeat.
        repeats: of the decoding, each from the same prompts.
        runtimes: of RUNTIMES.
    """

    device: str = "cuda"
    dtype: str = "bf16"
    sequences: tuple[int, ...] = (1, 16, 256)
    context: int = 256
    tokens: int = 64
    repeats: int = 5
    runtimes: tuple[str, ...] = RUNTIMES

    @property
    def prompt_tokens(self) -> int:
        return self.context - self.tokens // 2

    @property
    def longest(self) -> int:
        """Positions at the end of the decoding."""
        return self.prompt_tokens + self.tokens + 1


class Rushlight:
    """The model as the engine runs it: its backend's captured forward over one cache, the choice made on the device."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._model = rushlight.load(folder, device=plan.device, dtype=plan.dtype)
        self._ops: Any = self._model.module.ops
        self._run = self._ops.capture(self._model.module)
        self._longest = plan.longest
        self._blocks: list[range] = []

    def prefill(self, prompts: NDArray[np.int64]) -> torch.Tensor:
        n_blocks = -(-self._longest // BLOCK_SIZE)
        if len(self._blocks) != len(prompts):  # graphs belong to their cache, which is therefore kept between repeats
            self._blocks = [range(s * n_blocks, (s + 1) * n_blocks) for s in range(len(prompts))]
            self._cache = self._ops.kv_cache(self._model.config.kv_shape, len(prompts) * n_blocks)
        self._length = prompts.shape[1]
        logits = []
        for first in range(0, len(prompts), PREFILL_SEQUENCES):
            some = slice(first, first + PREFILL_SEQUENCES)
            chunks = [Chunk(ids, 0, blocks) for ids, blocks in zip(prompts[some], self._blocks[some], strict=True)]
            logits.append(self._run(Batch.of(chunks, self._cache)))
        return torch.cat(logits)

    def step(self, ids: list[int]) -> torch.Tensor:
        chunks = [Chunk((i,), self._length, blocks) for i, blocks in zip(ids, self._blocks, strict=True)]
        self._length += 1
        return self._run(Batch.of(chunks, self._cache))


class Transformers:
    """GPT2LMHeadModel with the cache that its `generate` would use: growing, or of fixed size where it is compiled."""

    def __init__(self, folder: Path, plan: Plan, *, compiled: bool) -> None:
        from transformers import GPT2LMHeadModel

        self._on = torch.device("cpu" if plan.device == "torch-cpu" else plan.device)
        self._model = GPT2LMHeadModel.from_pretrained(folder, dtype=TYPES[plan.dtype]).eval().to(self._on)
        self._longest = plan.longest
        self._compiled = compiled
        mode = "reduce-overhead" if self._on.type == "cuda" else "default"
        self._forward = torch.compile(self._model, mode=mode, dynamic=False) if compiled else self._model
        self._sequences = 0

    def prefill(self, prompts: NDArray[np.int64]) -> torch.Tensor:
        from transformers import DynamicCache, StaticCache

        config = self._model.config
        if not self._compiled:
            self._cache = DynamicCache(config=config)
        elif self._sequences == len(prompts):
            self._cache.reset()  # what is compiled holds this cache's addresses, and would be compiled again for others
        else:
            self._cache = StaticCache(config, max_cache_len=self._longest)
        self._sequences, self._length = len(prompts), 0
        return self._logits(self._model, torch.from_numpy(prompts).to(self._on))

    def step(self, ids: list[int]) -> torch.Tensor:
        return self._logits(self._forward, torch.tensor(ids, device=self._on)[:, None])

    def _logits(self, forward: Any, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(self._length, self._length + ids.shape[1], device=self._on)
        self._length += ids.shape[1]
        out = forward(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, position_ids=positions[None])
        return out.logits[:, -1].clone()  # a compiled model writes over what it returned before


def opened(name: str, folder: Path, plan: Plan) -> Rushlight | Transformers:
    """A runtime with its model on the device."""
    return Rushlight(folder, plan) if name == "rushlight" else Transformers(folder, plan, compiled=name == "compiled")


def decode_seconds(runtime: Rushlight | Transformers, prompts: NDArray[np.int64], plan: Plan) -> list[float]:
    """Seconds that all sequences take to go on by `tokens` each, for each repeat; the first, a warm-up, is left out."""
    seconds = []
    for _ in range(plan.repeats + 1):
        ids = runtime.prefill(prompts).argmax(-1).tolist()
        start = perf_counter()
        for _ in range(plan.tokens):
            ids = runtime.step(ids).argmax(-1).tolist()  # the one wait of a step
        seconds.append(perf_counter() - start)
    return seconds[1:]


def copy_bytes_s(on: torch.device, n_bytes: int) -> float:
    """Bytes read and written a second by the fastest of ten copies."""
    source = torch.ones(n_bytes, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    wait: Callable[[], object] = torch.cuda.synchronize if on.type == "cuda" else lambda: None
    seconds = []
    for _ in range(11):
        wait()
        start = perf_counter()
        target.copy_(source)
        wait()
        seconds.append(perf_counter() - start)
    return 2 * n_bytes / min(seconds[1:])


def step_bytes(shape: Shape, plan: Plan, n_sequences: int) -> int:
    """What a step must read: every weight once, the table as the head, and the keys and values of each context."""
    c = shape.n_embd
    weights = 12 * shape.n_layer * c * c + shape.vocab_size * c
    kv = 2 * shape.n_layer * c * plan.context * n_sequences
    return (weights + kv) * TYPES[plan.dtype].itemsize


def measure(plan: Plan, shape: Shape, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of a run."""
    torch.set_grad_enabled(False)
    on = torch.device("cpu" if plan.device == "torch-cpu" else plan.device)
    bandwidth = copy_bytes_s(on, 2**30 if on.type == "cuda" else 2**26)
    results: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(0, shape.vocab_size, (n, plan.prompt_tokens)) for n in plan.sequences}
    first: dict[int, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shape)
        for name in plan.runtimes:
            runtime = opened(name, Path(folder), plan)
            for n in plan.sequences:
                say(f"{name}, {n} together")
                logits = runtime.prefill(prompts[n]).float().numpy(force=True)
                gap = float(np.abs(logits - first.setdefault(n, logits)).max() / first[n].std())
                seconds = decode_seconds(runtime, prompts[n], plan)
                rates = [n * plan.tokens / s for s in seconds]
                reached = step_bytes(shape, plan, n) * plan.tokens / min(seconds) / bandwidth
                results.append(
                    {"runtime": name, "sequences": n, "tok_s": rates, "of_bandwidth": reached, "logits_gap_std": gap}
                )
            del runtime
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(on) if on.type == "cuda" else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "rushlight": rushlight.__version__,
        },
        "shape": shape._asdict(),
        "plan": asdict(plan),
        "copy_bytes_s": bandwidth,
        "results": results,
    }


def goals(record: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """What, goal, measured, met; the goals are for an H100, and for GPT-2 124M in bf16 at a mean context of 256."""
    rate = {(r["runtime"], r["sequences"]): statistics.median(r["tok_s"]) for r in record["results"]}
    plan = record["plan"]
    fits = "H100" in (record["gpu"] or "") and record["shape"] == GPT2_SMALL._asdict()
    fits = fits and (plan["dtype"], plan["context"]) == ("bf16", 256)
    rows: list[tuple[str, str, str, bool | None]] = []
    for n, least in ((1, 4_000), (256, 170_000)):
        if ours := rate.get(("rushlight", n)):
            rows.append((f"{n} together, tok/s", f"≥ {least:,}", f"{ours:,.0f}", ours >= least if fits else None))
            if eager := rate.get(("eager", n)):
                met = ours >= 10 * eager if fits else None
                rows.append((f"{n} together, over transformers eager", "≥ 10 ×", f"{ours / eager:.1f} ×", met))
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The report."""
    plan, versions = record["plan"], record["versions"]
    rows = [
        [
            r["runtime"] if r["runtime"] == "rushlight" else f"transformers, {r['runtime']}",
            str(r["sequences"]),
            f"{statistics.median(r['tok_s']):,.0f}",
            f"{min(r['tok_s']):,.0f} to {max(r['tok_s']):,.0f}",
            f"{100 * r['of_bandwidth']:.1f} %",
            f"{r['logits_gap_std']:.3f}",
        ]
        for r in record["results"]
    ]
    parts = [
        f"# Decode on {record['gpu'] or 'the CPU, which shows that the script runs and nothing else'}",
        "<!-- Written by `python -m benchmarks.gpu`. -->",
        f"{record['date']}. {plan['dtype']}, mean context {plan['context']}, {plan['tokens']} tokens a sequence, "
        f"{plan['repeats']} repeats; {', '.join(f'{name} {of}' for name, of in versions.items())}. "
        f"A copy reads and writes {record['copy_bytes_s'] / 1e9:,.0f} GB/s.",
        table(["runtime", "together", "tok/s", "least to most", "of the bandwidth", "logits apart, std"], rows),
        "## Goals, for an H100",
        table(["what", "goal", "measured", ""], [[*row[:3], MARKS[row[3]]] for row in goals(record)]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measures, writes, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Decode on a GPU.")
    parser.add_argument("--device", default=Plan.device, help="cuda, cuda:N or torch-cpu (%(default)s)")
    parser.add_argument("--dtype", default=Plan.dtype, choices=TYPES, help="(%(default)s)")
    parser.add_argument("--sequences", default=",".join(map(str, Plan.sequences)), help="together (%(default)s)")
    parser.add_argument("--context", type=int, default=Plan.context, help="mean positions (%(default)s)")
    parser.add_argument("--tokens", type=int, default=Plan.tokens, help="decoded by each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=Plan.repeats, help="(%(default)s)")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="of these: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a model of two small blocks in place of GPT-2 124M")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runtimes.split(",") if name not in RUNTIMES]
    if unknown:
        parser.error(f"no such runtime: {', '.join(unknown)}; there are {', '.join(RUNTIMES)}")
    plan = Plan(
        device=arguments.device,
        dtype=arguments.dtype,
        sequences=tuple(map(int, arguments.sequences.split(","))),
        context=arguments.context,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        runtimes=tuple(arguments.runtimes.split(",")),
    )
    shape = TINY if arguments.tiny else GPT2_SMALL
    if plan.prompt_tokens < 1 or plan.longest > shape.n_positions:
        parser.error(
            f"contexts from {plan.prompt_tokens} to {plan.longest}: they must be from 1 to {shape.n_positions}"
        )
    record = measure(plan, shape, _say)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(markdown(record))


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    main()
