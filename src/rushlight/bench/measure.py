"""Benchmarks a model at one dtype: one group of rows of `rushlight bench`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rushlight.backends import DTYPES, open_backend
from rushlight.bench.bandwidth import WeightReader
from rushlight.bench.disturbance import Watch, bandwidth_share, disturbances
from rushlight.bench.process import run_fresh
from rushlight.bench.repeats import Repeats
from rushlight.bench.steps import DECODE_PROMPT_TOKENS, time_decode, time_prefill
from rushlight.errors import ContextLengthError, DtypeError, RequestError, RushlightError
from rushlight.loading.load import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.runtime.model import Model

PREFILL_TOKENS = 512
PROMPT = "Once upon a time"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The model and the workload to measure.

    Attributes:
        source, device, threads, exact, offline, revision, port, copy: as `rushlight.load` takes them.
        prompt_tokens: length of the prefill; None is 512, or the context length if that is less.
        tokens: tokens to decode per sequence.
        batch_sizes: batch sizes of the decode; each is measured.
        repeats: repeats of each measurement.
    """

    source: str | None = None
    device: str = "auto"
    threads: int | None = None
    exact: bool | None = None
    offline: bool = False
    revision: str | None = None
    port: str | None = None
    copy: bool = False
    prompt_tokens: int | None = None
    tokens: int = 32
    batch_sizes: tuple[int, ...] = (1, 16)
    repeats: int = 5

    def __post_init__(self) -> None:
        """Raises RequestError for numbers below 1."""
        given = [("tokens", self.tokens), ("repeats", self.repeats), *(("batch size", n) for n in self.batch_sizes)]
        if self.prompt_tokens is not None:
            given.append(("prompt_tokens", self.prompt_tokens))
        wrong = [f"{name} {value}" for name, value in given if value < 1]
        if wrong:
            raise RequestError("nothing to measure", expected="numbers of at least 1", found=", ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The decode rate at one batch size.

    Attributes:
        batch_size: sequences in the batch.
        tok_s: tokens per second, all sequences counted.
        read_gb_s: bandwidth of the weights, in 10⁹ bytes per second: a step reads them once for the whole batch.
        bandwidth_share: `read_gb_s` relative to only reading the weights, 0 to 1; None if that was disturbed.
    """

    batch_size: int
    tok_s: Repeats
    read_gb_s: Repeats
    bandwidth_share: float | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The benchmark of a model at one dtype.

    Attributes:
        model, n_parameters, device, dtype, arithmetic: as in `Model`.
        step_bytes: bytes of weights that a decode step reads.
        prefill_tokens, prefill_tok_s: length of the prefill, and its tokens per second.
        decode: one entry per batch size.
        reader: how `bandwidth_gb_s` was measured: "weights" by the backend, or "numpy".
        bandwidth_gb_s: bandwidth of only reading the weights, measured between the decodes.
        first_token_s: from the start of `rushlight generate` in a fresh process to its first token; None without a
            tokenizer.
        peak_bytes: peak resident memory of those processes.
        disturbed: reasons to distrust the figures; empty if there are none.
    """

    model: str
    n_parameters: int
    device: str
    dtype: str
    arithmetic: str
    step_bytes: int
    prefill_tokens: int
    prefill_tok_s: Repeats
    decode: tuple[Decode, ...]
    reader: str
    bandwidth_gb_s: Repeats
    first_token_s: Repeats | None
    peak_bytes: int | None
    disturbed: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        record = asdict(self)
        record["decode"] = [
            {
                "batch_size": d.batch_size,
                "tok_s": d.tok_s.to_json(),
                "read_gb_s": d.read_gb_s.to_json(),
                "bandwidth_share": d.bandwidth_share,
            }
            for d in self.decode
        ]
        for name in ("prefill_tok_s", "bandwidth_gb_s", "first_token_s"):
            sample = getattr(self, name)
            record[name] = sample and sample.to_json()
        return record


def dtypes_of(device: str) -> list[str]:
    """The dtypes that a device supports, without f64, which is only for comparisons.

    Raises:
        DeviceError: the device is not available.
    """
    found = []
    for dtype in DTYPES:
        try:
            open_backend(device, dtype)
        except DtypeError:
            continue
        found.append(dtype)
    return [dtype for dtype in found if dtype not in {"auto", "f64"}]


def measure(
    config: BenchConfig, dtype: str = "auto", stage: Callable[[str], AbstractContextManager[object]] = nullcontext
) -> Measurement:
    """Loads a model at a dtype and benchmarks it; each measurement starts with a warm-up.

    Args:
        config: the model and the workload.
        dtype: the dtype to load the model at.
        stage: a context manager that shows the progress of each part of the work.

    Raises:
        RushlightError: the model cannot be loaded, or its context is too short.
    """
    with stage(f"{dtype}: loading"):
        model = load(
            config.source,
            device=config.device,
            dtype=dtype,
            threads=config.threads,
            exact=config.exact,
            offline=config.offline,
            revision=config.revision,
            port=config.port,
            copy=config.copy,
        )
    prompt_tokens = config.prompt_tokens or min(PREFILL_TOKENS, model.context_length)
    longest = max(prompt_tokens, DECODE_PROMPT_TOKENS + config.tokens)
    if longest > model.context_length:
        raise ContextLengthError(
            "the benchmark needs a longer context",
            expected=f"at least {longest} tokens",
            found=model.context_length,
            remedy="reduce --prompt-tokens or --tokens",
        )

    watch = Watch()
    with stage(f"{model.dtype}: prefill of {prompt_tokens}"):
        time_prefill(model, prompt_tokens)
        with watch.measuring():
            prefill_s = Repeats.of(time_prefill(model, prompt_tokens) for _ in range(config.repeats))

    reader = WeightReader(model)
    reader.time()
    read_s: list[float] = []
    decode: list[Decode] = []
    repeats = {"prefill": prefill_s}
    for n in config.batch_sizes:
        with stage(f"{model.dtype}: decode, batch size {n}"):
            time_decode(model, n, 1)
            decode_s = []
            for _ in range(config.repeats):
                read_s.append(reader.time())
                with watch.measuring():
                    decode_s.append(time_decode(model, n, config.tokens))
        steps = repeats[f"decode at batch size {n}"] = Repeats.of(decode_s)
        reading = Repeats.of(read_s[-config.repeats :]).per(reader.nbytes / 1e9)
        read_gb_s = steps.per(config.tokens * reader.nbytes / 1e9)
        share = bandwidth_share(read_gb_s, reading)
        decode.append(
            Decode(batch_size=n, tok_s=steps.per(n * config.tokens), read_gb_s=read_gb_s, bandwidth_share=share)
        )
    repeats["reading"] = Repeats.of(read_s)
    disturbed = disturbances(watch, repeats, computes=model.device == "cpu" and reader.name == "weights")
    if any(each.bandwidth_share is None for each in decode):
        disturbed += ("only reading the weights was slower than a decode step, so the bandwidth share is unknown",)

    with stage(f"{model.dtype}: first token in a fresh process"):
        first_token_s, peak_bytes = _fresh(model, config, dtype)
    return Measurement(
        model=model.name,
        n_parameters=model.n_parameters,
        device=model.device,
        dtype=model.dtype,
        arithmetic=model.arithmetic,
        step_bytes=reader.nbytes,
        prefill_tokens=prompt_tokens,
        prefill_tok_s=prefill_s.per(prompt_tokens),
        decode=tuple(decode),
        reader=reader.name,
        bandwidth_gb_s=repeats["reading"].per(reader.nbytes / 1e9),
        first_token_s=first_token_s,
        peak_bytes=peak_bytes,
        disturbed=disturbed,
    )


def _fresh(model: Model, config: BenchConfig, dtype: str) -> tuple[Repeats | None, int | None]:
    """Time to first token and peak memory of `rushlight generate` with a short prompt, in fresh processes."""
    if model.tokenizer is None:
        return None, None
    command = [sys.executable, "-m", "rushlight", "generate", "--device", config.device, "--dtype", dtype]
    command += ["--max-tokens", "1", "--ignore-eos", "--no-echo", *(["--offline"] if config.offline else [])]
    command += ["--revision", config.revision] if config.revision else []
    command += ["--port", config.port] if config.port else []
    command += ["--threads", str(config.threads)] if config.threads is not None else []
    command += ["--exact"] if config.exact else []
    command += ["--copy"] if config.copy else []
    command += ["--", config.source] if config.source else []
    run_fresh(command, PROMPT)
    first_s, peak_bytes = [], 0
    for _ in range(config.repeats):
        run = run_fresh(command, PROMPT)
        if run.exit_code or run.first_output_s is None:
            raise RushlightError(
                f"`rushlight generate` failed with exit code {run.exit_code}", found=run.errors.strip()
            )
        first_s.append(run.first_output_s)
        peak_bytes = max(peak_bytes, run.peak_bytes)
    return Repeats.of(first_s), peak_bytes
