"""`rushlight batch`: generate for every line of a file."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from rushlight.cli.options import (
    MODEL,
    OUTPUT,
    SAMPLING,
    TEXT,
    Debug,
    Device,
    Dtype,
    Exact,
    FrequencyPenalty,
    IgnoreEos,
    LogitBias,
    MaxTokens,
    MinP,
    Offline,
    Port,
    PresencePenalty,
    RepetitionPenalty,
    Revision,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    complete_source,
    parse_biases,
)
from rushlight.cli.progress import progress_bar
from rushlight.cli.terminal import out_json, out_json_text, say, status
from rushlight.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.generation import SamplingSettings
    from rushlight.jobs import ResultLine, Summary

SOME_FAILED = 1

EXAMPLES = """
\b
Examples:
  rushlight batch prompts.jsonl -o out.jsonl
  rushlight batch prompts.jsonl -o out.jsonl -m gpt2 -n 40 --ordered
  rushlight batch lines.txt --text-lines -o out.jsonl --parallel 32
  head prompts.jsonl | rushlight batch - -o - | jq -r .text
"""


def batch(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            rich_help_panel=TEXT,
            help='Lines as {"prompt": ..., "id": ..., "max_tokens": ..., ...}; - is stdin.',
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Where results go, a line each; - is stdout. What is finished there is not done again.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SOURCE",
            autocompletion=complete_source,
            rich_help_panel=MODEL,
            help="A .safetensors file, a folder, tales, or a hub id. Without it: tales, the embedded model.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    exact: Exact = None,
    offline: Offline = False,
    revision: Revision = None,
    port: Port = None,
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", rich_help_panel=MODEL, help="Generate N texts at once.")
    ] = 16,
    text_lines: Annotated[
        bool,
        typer.Option("--text-lines", rich_help_panel=TEXT, help="A line is a prompt as it stands, not JSON."),
    ] = False,
    max_tokens: MaxTokens = 100,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Of the job: a line without its own draws by this and its index.",
        ),
    ] = 0,
    ordered: Annotated[
        bool,
        typer.Option("--ordered", rich_help_panel=OUTPUT, help="Write results in the order of the input."),
    ] = False,
    echo: Annotated[
        bool, typer.Option("--echo", rich_help_panel=OUTPUT, help="Put each prompt into its result.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Begin again, whatever the output file holds.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the summary as a JSON object on stdout.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Generate for every line of a file, many at once, and write a line of JSON for each.

    A line sets what it likes by the names of the Python settings; the flags hold for the rest. Run again, the command
    goes on where it was ended. Exit code 1: some lines have an error for a result.
    """
    import rushlight
    from rushlight.generation import SamplingParams
    from rushlight.jobs import Job, RequestLines, ResultsFile, read_lines
    from rushlight.text.stop import StopStrings

    settings: SamplingSettings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": parse_biases(logit_bias),
        "ignore_eos": ignore_eos,
    }
    SamplingParams(**(settings | {"seed": seed}))
    StopStrings(stop or ())
    if parallel < 1:
        raise typer.BadParameter(f"{parallel} is not 1 or more", param_hint="--parallel")
    if as_json and output == "-":
        raise typer.BadParameter("the results go to stdout already", param_hint="--json")
    requests = RequestLines(settings, tuple(stop or ()), seed, text_lines)
    with ExitStack() as stack:
        file = stack.enter_context(_open(prompts))
        if _is_output(file, output):
            raise JobError("input and output are one file", file="standard output" if output == "-" else output)
        results = _Stdout() if output == "-" else stack.enter_context(ResultsFile(output, force=force))
        with status(f"loading {model or 'the embedded model'}"):
            loaded = rushlight.load(
                model,
                device=device,
                dtype=dtype,
                threads=threads,
                exact=exact,
                offline=offline,
                revision=revision,
                port=port,
            )
        job = Job(loaded, requests, results, max_active=parallel, ordered=ordered, echo=echo, port=port)
        total = Path(prompts).stat().st_size if Path(prompts).is_file() else None
        if len(results) and total is not None:
            job.check(read_lines(file))
            file.seek(0)
        try:
            with progress_bar("batch", total) as update:

                def show(so_far: Summary) -> None:
                    n_lines = so_far.n_done + so_far.n_failed + so_far.n_skipped
                    update(so_far.n_bytes, f"{n_lines:,} lines  {so_far.tok_s:,.0f} tok/s")

                job.run(read_lines(file), show)
        finally:
            say(_sentence(job.summary))
        if as_json:
            out_json(asdict(job.summary) | {"tok_s": job.summary.tok_s})
        if results.n_failed:
            raise typer.Exit(SOME_FAILED)


class _Stdout:
    """Results that are printed, and none is there before."""

    last_index = -1
    in_order = True
    job: Mapping[str, str] | None = None

    def __init__(self) -> None:
        self.n_failed = 0

    def __len__(self) -> int:
        return 0

    def digest(self, index: int) -> None:
        """None: nothing is kept."""

    def append(self, result: ResultLine) -> None:
        self.n_failed += result.is_error
        out_json_text(result.raw.decode())


def _open(prompts: str) -> BinaryIO:
    if prompts != "-":
        return Path(prompts).open("rb")
    if sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint="INPUT")
    return sys.stdin.buffer


def _is_output(file: BinaryIO, output: str) -> bool:
    """Whether the input is the file that the results would go to."""
    try:
        read = os.fstat(file.fileno())
        written = os.fstat(sys.stdout.fileno()) if output == "-" else Path(output).stat()
    except OSError:  # an input that is no file of the system's, or an output that is not there yet
        return False
    return stat.S_ISREG(read.st_mode) and os.path.samestat(read, written)


def _sentence(summary: Summary) -> str:
    parts = [f"{summary.n_done:,} line{'' if summary.n_done == 1 else 's'} done"]
    if summary.n_failed:
        parts.append(f"{summary.n_failed:,} failed")
    if summary.n_skipped:
        parts.append(f"{summary.n_skipped:,} done before")
    rate = f"{summary.generated_tokens:,} tokens in {summary.elapsed_s:.1f} s, {summary.tok_s:,.0f} tok/s"
    return f"batch: {', '.join(parts)}; {rate}"
