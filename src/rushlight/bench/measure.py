"""One model at one dtype, measured: the whole of what `rushlight bench` shows a row group of."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rushlight.backends import DTYPES, open_backend
from rushlight.bench.bandwidth import Reader
from rushlight.bench.disturbance import Watch, disturbances, share_of_reading
from rushlight.bench.process import run_fresh
from rushlight.bench.sample import Sample
from rushlight.bench.steps import DECODE_PROMPT_TOKENS, time_decode, time_prefill
from rushlight.errors import ContextLengthError, DtypeError, RequestError, RushlightError
from rushlight.loading.load import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from rushlight.runtime.model import Model

PREFILL_TOKENS = 512
PROMPT = "Once upon a time"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        source, device, threads, exact, offline, revision, port: as `rushlight.load` takes them.
        prompt_tokens: of the prompt whose prefill is timed; None is 512, or the model's context if that is less.
        tokens: how far each sequence is decoded.
        sequences: how many sequences decode together; each number is measured.
        repeats: of every measurement.
    """

    source: str | None = None
    device: str = "auto"
    threads: int | None = None
    exact: bool | None = None
    offline: bool = False
    revision: str | None = None
    port: str | None = None
    prompt_tokens: int | None = None
    tokens: int = 32
    sequences: tuple[int, ...] = (1, 16)
    repeats: int = 5

    def __post_init__(self) -> None:
        """Raises RequestError for a number that measures nothing."""
        given = [("tokens", self.tokens), ("repeats", self.repeats), *(("sequences", n) for n in self.sequences)]
        if self.prompt_tokens is not None:
            given.append(("prompt_tokens", self.prompt_tokens))
        wrong = [f"{name} {value}" for name, value in given if value < 1]
        if wrong:
            raise RequestError(f"nothing to measure with {', '.join(wrong)}", expected="numbers of 1 or more")


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Sequences decoding together.

    Attributes:
        sequences: how many.
        tok_s: tokens a second, of all of them.
        read_gb_s: weights read, in 10⁹ bytes a second: each step reads them once, for all sequences.
        share: of what only reading them reached beside it, 0 to 1; None where that was slower, and so was disturbed.
    """

    sequences: int
    tok_s: Sample
    read_gb_s: Sample
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model at one dtype.

    Attributes:
        model, n_parameters, device, dtype, arithmetic: what ran, where, and what it computed in; see `Model`.
        step_bytes: of weights that a decode step reads.
        prefill_tokens, prefill_tok_s: tokens of the prompt, and how many a second.
        decode: for each number of sequences.
        reader: what `bandwidth_gb_s` was measured with: the backend's reader of its own weights, or NumPy.
        bandwidth_gb_s: as many bytes only read, in turn with the decoding.
        first_token_s: from the start of a fresh `rushlight generate` to its first token; None without a tokenizer.
        peak_bytes: the most resident memory of those processes.
        disturbed: what says that other programs took part in the figures; empty if nothing does.
    """

    model: str
    n_parameters: int
    device: str
    dtype: str
    arithmetic: str
    step_bytes: int
    prefill_tokens: int
    prefill_tok_s: Sample
    decode: tuple[Decode, ...]
    reader: str
    bandwidth_gb_s: Sample
    first_token_s: Sample | None
    peak_bytes: int | None
    disturbed: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        record = asdict(self)
        record["decode"] = [
            {
                "sequences": d.sequences,
                "tok_s": d.tok_s.to_json(),
                "read_gb_s": d.read_gb_s.to_json(),
                "share": d.share,
            }
            for d in self.decode
        ]
        for name in ("prefill_tok_s", "bandwidth_gb_s", "first_token_s"):
            sample = getattr(self, name)
            record[name] = sample and sample.to_json()
        return record


def dtypes_of(device: str) -> list[str]:
    """The dtype words that the device computes in, but f64, which is there for comparisons.

    Raises:
        DeviceError: the device is not there.
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
    plan: Plan, dtype: str = "auto", stage: Callable[[str], AbstractContextManager[object]] = nullcontext
) -> Measurement:
    """Loads the model at a dtype and measures it; everything runs once before it is timed.

    Args:
        plan: what to measure.
        dtype: a dtype word.
        stage: is entered with a few words for each part of the work, to show progress.

    Raises:
        RushlightError: the model cannot be loaded, or its context is too short for the plan.
    """
    with stage(f"{dtype}: loading"):
        model = load(
            plan.source,
            device=plan.device,
            dtype=dtype,
            threads=plan.threads,
            exact=plan.exact,
            offline=plan.offline,
            revision=plan.revision,
            port=plan.port,
        )
    prompt_tokens = plan.prompt_tokens or min(PREFILL_TOKENS, model.context_length)
    longest = max(prompt_tokens, DECODE_PROMPT_TOKENS + plan.tokens)
    if longest > model.context_length:
        raise ContextLengthError(f"{longest} tokens are to be run, and the model's context is {model.context_length}")

    watch = Watch()
    with stage(f"{model.dtype}: prefill of {prompt_tokens}"):
        time_prefill(model, prompt_tokens)
        with watch.measuring():
            prefill_s = Sample.of(time_prefill(model, prompt_tokens) for _ in range(plan.repeats))

    reader = Reader(model)
    reader.time()
    read_s: list[float] = []
    decode: list[Decode] = []
    samples = {"prefill": prefill_s}
    for n in plan.sequences:
        with stage(f"{model.dtype}: {n} decoding"):
            time_decode(model, n, 1)
            decode_s = []
            for _ in range(plan.repeats):
                read_s.append(reader.time())
                with watch.measuring():
                    decode_s.append(time_decode(model, n, plan.tokens))
        steps = samples[f"decode of {n}"] = Sample.of(decode_s)
        beside = Sample.of(read_s[-plan.repeats :]).per(reader.nbytes / 1e9)
        read_gb_s = steps.per(plan.tokens * reader.nbytes / 1e9)
        share = share_of_reading(read_gb_s, beside)
        decode.append(Decode(sequences=n, tok_s=steps.per(n * plan.tokens), read_gb_s=read_gb_s, share=share))
    samples["reading"] = Sample.of(read_s)
    disturbed = disturbances(watch, samples, computes=model.device == "cpu" and reader.name == "weights")
    if any(each.share is None for each in decode):
        disturbed += ("reading alone was slower than the steps, so no share of it is given",)

    with stage(f"{model.dtype}: first token in a fresh process"):
        first_token_s, peak_bytes = _fresh(model, plan, dtype)
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
        bandwidth_gb_s=samples["reading"].per(reader.nbytes / 1e9),
        first_token_s=first_token_s,
        peak_bytes=peak_bytes,
        disturbed=disturbed,
    )


def _fresh(model: Model, plan: Plan, dtype: str) -> tuple[Sample | None, int | None]:
    """Time to first token and peak memory of `rushlight generate` on a short prompt.

    One token: as text it may be no whole character, but with the end of the output it comes all the same.
    """
    if model.tokenizer is None:
        return None, None
    command = [sys.executable, "-m", "rushlight", "generate", "--device", plan.device, "--dtype", dtype]
    command += ["--max-tokens", "1", "--ignore-eos", "--no-echo", *(["--offline"] if plan.offline else [])]
    command += ["--revision", plan.revision] if plan.revision else []
    command += ["--port", plan.port] if plan.port else []
    command += ["--threads", str(plan.threads)] if plan.threads is not None else []
    command += ["--exact"] if plan.exact else []
    command += ["--", plan.source] if plan.source else []
    run_fresh(command, PROMPT)
    first_s, peak_bytes = [], 0
    for _ in range(plan.repeats):
        run = run_fresh(command, PROMPT)
        if run.exit_code or run.first_output_s is None:
            raise RushlightError(f"a fresh `rushlight generate` ended with {run.exit_code}", found=run.errors.strip())
        first_s.append(run.first_output_s)
        peak_bytes = max(peak_bytes, run.peak_bytes)
    return Sample.of(first_s), peak_bytes
