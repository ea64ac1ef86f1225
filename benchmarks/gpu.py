"""`python -m benchmarks.gpu`: benchmarks GPT-2 124M on a GPU, with transformers, eager and compiled, for comparison.

Decode is timed end to end, from the tokens of one step on the host to those of the next. All runtimes decode the same
prompts greedily; the table shows how far their logits differ. The bandwidth share is the bytes that a step must read,
weights and KV cache, relative to the bandwidth of a copy.

With `--device torch-cpu --tiny` it runs anywhere, as a smoke test.
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
"""Prompts that rushlight prefills in one batch."""

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class GPUConfig:
    """The workload to measure.

    Attributes:
        device: a device of rushlight that PyTorch computes on.
        dtype: of weights and activations.
        batch_sizes: sequences that decode in one batch; each size is measured.
        context: the mean number of positions in the cache while decoding.
        tokens: decoded by each sequence in each repeat.
        repeats: number of timed decodes, each from the same prompts.
        runtimes: a subset of RUNTIMES.
    """

    device: str = "cuda"
    dtype: str = "bf16"
    batch_sizes: tuple[int, ...] = (1, 16, 256)
    context: int = 256
    tokens: int = 64
    repeats: int = 5
    runtimes: tuple[str, ...] = RUNTIMES

    @property
    def prompt_tokens(self) -> int:
        return self.context - self.tokens // 2

    @property
    def longest(self) -> int:
        """Positions at the end of the decode."""
        return self.prompt_tokens + self.tokens + 1


class Rushlight:
    """The model as the engine runs it: the captured forward of the backend over one cache, sampled on the device."""

    def __init__(self, folder: Path, config: GPUConfig) -> None:
        self._model = rushlight.load(folder, device=config.device, dtype=config.dtype)
        self._ops: Any = self._model.module.ops
        self._run = self._ops.capture(self._model.module)
        self._longest = config.longest
        self._blocks: list[range] = []

    def prefill(self, prompts: NDArray[np.int64]) -> torch.Tensor:
        n_blocks = -(-self._longest // BLOCK_SIZE)
        if len(self._blocks) != len(prompts):  # graphs are bound to their cache, so it is kept between repeats
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
    """GPT2LMHeadModel with the cache that `generate` would use: dynamic, or static if compiled."""

    def __init__(self, folder: Path, config: GPUConfig, *, compiled: bool) -> None:
        from transformers import GPT2LMHeadModel

        self._on = torch.device("cpu" if config.device == "torch-cpu" else config.device)
        self._model = GPT2LMHeadModel.from_pretrained(folder, dtype=TYPES[config.dtype]).eval().to(self._on)
        self._longest = config.longest
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
            self._cache.reset()  # compiled code holds the addresses of this cache; a new cache would recompile it
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
        return out.logits[:, -1].clone()  # a compiled model overwrites its previous output


def open_runtime(name: str, folder: Path, config: GPUConfig) -> Rushlight | Transformers:
    """A runtime with the model loaded on the device."""
    return (
        Rushlight(folder, config) if name == "rushlight" else Transformers(folder, config, compiled=name == "compiled")
    )


def decode_seconds(runtime: Rushlight | Transformers, prompts: NDArray[np.int64], config: GPUConfig) -> list[float]:
    """Seconds to decode `tokens` of every sequence, per repeat, without the warm-up."""
    seconds = []
    for _ in range(config.repeats + 1):
        ids = runtime.prefill(prompts).argmax(-1).tolist()
        start = perf_counter()
        for _ in range(config.tokens):
            ids = runtime.step(ids).argmax(-1).tolist()  # the only synchronization of a step
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


def step_bytes(shape: Shape, config: GPUConfig, n_sequences: int) -> int:
    """Bytes a step must read: every weight once, the tied head included, and the KV cache of each context."""
    c = shape.n_embd
    weights = 12 * shape.n_layer * c * c + shape.vocab_size * c
    kv = 2 * shape.n_layer * c * config.context * n_sequences
    return (weights + kv) * TYPES[config.dtype].itemsize


def measure(config: GPUConfig, shape: Shape, log: Callable[[str], None]) -> dict[str, Any]:
    """Runs the benchmark and returns its record."""
    torch.set_grad_enabled(False)
    on = torch.device("cpu" if config.device == "torch-cpu" else config.device)
    bandwidth = copy_bytes_s(on, 2**30 if on.type == "cuda" else 2**26)
    results: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(0, shape.vocab_size, (n, config.prompt_tokens)) for n in config.batch_sizes}
    first: dict[int, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shape)
        for name in config.runtimes:
            runtime = open_runtime(name, Path(folder), config)
            for n in config.batch_sizes:
                log(f"{name}, batch size {n}")
                logits = runtime.prefill(prompts[n]).float().numpy(force=True)
                gap = float(np.abs(logits - first.setdefault(n, logits)).max() / first[n].std())
                seconds = decode_seconds(runtime, prompts[n], config)
                rates = [n * config.tokens / s for s in seconds]
                reached = step_bytes(shape, config, n) * config.tokens / min(seconds) / bandwidth
                results.append(
                    {"runtime": name, "batch_size": n, "tok_s": rates, "of_bandwidth": reached, "logits_gap_std": gap}
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
        "config": asdict(config),
        "copy_bytes_s": bandwidth,
        "results": results,
    }


def goals(record: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """Rows of (metric, goal, measured, met). The goals are for GPT-2 124M in bf16 on an H100, mean context 256."""
    rate = {(r["runtime"], r["batch_size"]): statistics.median(r["tok_s"]) for r in record["results"]}
    config = record["config"]
    fits = "H100" in (record["gpu"] or "") and record["shape"] == GPT2_SMALL._asdict()
    fits = fits and (config["dtype"], config["context"]) == ("bf16", 256)
    rows: list[tuple[str, str, str, bool | None]] = []
    for n, least in ((1, 4_000), (256, 170_000)):
        if ours := rate.get(("rushlight", n)):
            rows.append((f"batch size {n}, tok/s", f"≥ {least:,}", f"{ours:,.0f}", ours >= least if fits else None))
            if eager := rate.get(("eager", n)):
                met = ours >= 10 * eager if fits else None
                rows.append((f"batch size {n}, over transformers eager", "≥ 10 ×", f"{ours / eager:.1f} ×", met))
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The report."""
    config, versions = record["config"], record["versions"]
    rows = [
        [
            r["runtime"] if r["runtime"] == "rushlight" else f"transformers, {r['runtime']}",
            str(r["batch_size"]),
            f"{statistics.median(r['tok_s']):,.0f}",
            f"{min(r['tok_s']):,.0f} to {max(r['tok_s']):,.0f}",
            f"{100 * r['of_bandwidth']:.1f} %",
            f"{r['logits_gap_std']:.3f}",
        ]
        for r in record["results"]
    ]
    parts = [
        f"# Decode on {record['gpu'] or 'the CPU: a smoke test, not a benchmark'}",
        "<!-- Written by `python -m benchmarks.gpu`. -->",
        f"{record['date']}. {config['dtype']}, mean context {config['context']}, {config['tokens']} tokens each, "
        f"{config['repeats']} repeats; {', '.join(f'{name} {of}' for name, of in versions.items())}. "
        f"A copy reads and writes {record['copy_bytes_s'] / 1e9:,.0f} GB/s.",
        table(["runtime", "batch size", "tok/s", "min to max", "of the bandwidth", "logits difference, std"], rows),
        "## Goals, for an H100",
        table(["metric", "goal", "measured", ""], [[*row[:3], MARKS[row[3]]] for row in goals(record)]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Decode on a GPU.")
    parser.add_argument("--device", default=GPUConfig.device, help="cuda, cuda:N or torch-cpu (%(default)s)")
    parser.add_argument("--dtype", default=GPUConfig.dtype, choices=TYPES, help="(%(default)s)")
    parser.add_argument("--batch-sizes", default=",".join(map(str, GPUConfig.batch_sizes)), help="(%(default)s)")
    parser.add_argument(
        "--context", type=int, default=GPUConfig.context, help="mean positions in the KV cache (%(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=GPUConfig.tokens, help="tokens each sequence decodes (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=GPUConfig.repeats, help="(%(default)s)")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="comma-separated subset of: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a model of two small blocks in place of GPT-2 124M")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record as JSON")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.runtimes.split(",") if name not in RUNTIMES]
    if unknown:
        parser.error(f"unknown runtime: {', '.join(unknown)}; expected {', '.join(RUNTIMES)}")
    config = GPUConfig(
        device=arguments.device,
        dtype=arguments.dtype,
        batch_sizes=tuple(map(int, arguments.batch_sizes.split(","))),
        context=arguments.context,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        runtimes=tuple(arguments.runtimes.split(",")),
    )
    shape = TINY if arguments.tiny else GPT2_SMALL
    if config.prompt_tokens < 1 or config.longest > shape.n_positions:
        parser.error(
            f"context lengths must be from 1 to {shape.n_positions}, found {config.prompt_tokens} to {config.longest}"
        )
    record = measure(config, shape, _log)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(markdown(record))


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
