"""`rushlight batch`: generate completions for the prompts in a file."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from rushlight.cli.exit_codes import CHECK_FAILED
from rushlight.cli.loading import load_model, load_options
from rushlight.cli.options import INPUT, MODEL, OUTPUT, SAMPLING, Debug, Stop, complete_source
from rushlight.cli.progress import progress_bar
from rushlight.cli.sampling_options import sampling_options
from rushlight.cli.terminal import out_json, out_json_text, write_err
from rushlight.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rushlight.generation import SamplingSettings
    from rushlight.jobs import ResultLine, Summary

EXAMPLES = """
\b
Examples:
  rushlight batch prompts.jsonl -o out.jsonl
  rushlight batch prompts.jsonl -o out.jsonl -m gpt2 -n 40 --ordered
  rushlight batch lines.txt --text-lines -o out.jsonl --parallel 32
  head prompts.jsonl | rushlight batch - -o - | jq -r .text
"""


@load_options(without=("draft",))
@sampling_options(without=("seed", "n", "logprobs", "prompt_logprobs", "speculate", "json_schema", "regex"))
def batch(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            rich_help_panel=INPUT,
            help='A file of lines such as {"prompt": ..., "id": ..., "max_tokens": ...}; - is stdin.',
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="The file for the results, one per line; - is stdout. Lines that already have a result are skipped.",
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
            help="A .safetensors file, a folder, a hub id, or tales, the embedded model. Default: tales.",
        ),
    ] = None,
    *,
    load_with: dict[str, Any],
    parallel: Annotated[
        int, typer.Option("--parallel", metavar="N", rich_help_panel=MODEL, help="Maximum batch size.")
    ] = 16,
    text_lines: Annotated[
        bool,
        typer.Option("--text-lines", rich_help_panel=INPUT, help="Read each line as a prompt, not as JSON."),
    ] = False,
    settings: SamplingSettings,
    stop: Stop = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Seed of the job; a line without a seed derives one from this and its index.",
        ),
    ] = 0,
    ordered: Annotated[
        bool,
        typer.Option("--ordered", rich_help_panel=OUTPUT, help="Write results in the order of the input."),
    ] = False,
    echo: Annotated[
        bool, typer.Option("--echo", rich_help_panel=OUTPUT, help="Include the prompt in each result.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Start over and overwrite the output file.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the summary as one JSON object on stdout.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Generate completions for the prompts in a file, in batches.

    The result of each line is a line of JSON. The fields of a line override the flags, under the names of the Python
    API. Run the same command again to resume an interrupted job. Exit code 1: at least one line failed.
    """
    from rushlight.generation import SamplingParams
    from rushlight.jobs import Job, RequestLines, ResultsFile, read_lines
    from rushlight.text.stop import StopStrings

    SamplingParams(**(settings | {"seed": seed}))
    StopStrings(stop or ())
    if parallel < 1:
        raise typer.BadParameter(f"expected at least 1, found {parallel}", param_hint="--parallel")
    if as_json and output == "-":
        raise typer.BadParameter("the results are already written to stdout", param_hint="--json")
    requests = RequestLines(settings, tuple(stop or ()), seed, text_lines)
    with ExitStack() as stack:
        file = stack.enter_context(_open(prompts))
        if _is_output(file, output):
            raise JobError("input and output are the same file", file="standard output" if output == "-" else output)
        results = _Stdout() if output == "-" else stack.enter_context(ResultsFile(output, force=force))
        loaded = load_model(model, load_with)
        job = Job(loaded, requests, results, max_active=parallel, ordered=ordered, echo=echo, port=load_with["port"])
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
            write_err(_summary_line(job.summary))
        if as_json:
            out_json(asdict(job.summary) | {"tok_s": job.summary.tok_s})
        if results.n_failed:
            raise typer.Exit(CHECK_FAILED)


class _Stdout:
    """Results printed on stdout, without results of an earlier run."""

    last_index = -1
    in_order = True
    job: Mapping[str, str] | None = None

    def __init__(self) -> None:
        self.n_failed = 0

    def __len__(self) -> int:
        return 0

    def digest(self, index: int) -> None:
        """Always None: stdout keeps no results."""

    def append(self, result: ResultLine) -> None:
        self.n_failed += result.is_error
        out_json_text(result.raw.decode())


def _open(prompts: str) -> BinaryIO:
    if prompts != "-":
        return Path(prompts).open("rb")
    if sys.stdin is None:
        raise typer.BadParameter("stdin is closed", param_hint="INPUT")
    return sys.stdin.buffer


def _is_output(file: BinaryIO, output: str) -> bool:
    """Whether the results would be written to the input file."""
    try:
        read = os.fstat(file.fileno())
        written = os.fstat(sys.stdout.fileno()) if output == "-" else Path(output).stat()
    except OSError:  # an input without a descriptor, or an output that does not exist yet
        return False
    return stat.S_ISREG(read.st_mode) and os.path.samestat(read, written)


def _summary_line(summary: Summary) -> str:
    parts = [f"{summary.n_done:,} line{'' if summary.n_done == 1 else 's'} done"]
    if summary.n_failed:
        parts.append(f"{summary.n_failed:,} failed")
    if summary.n_skipped:
        parts.append(f"{summary.n_skipped:,} already done")
    rate = f"{summary.generated_tokens:,} tokens in {summary.elapsed_s:.1f} s, {summary.tok_s:,.0f} tok/s"
    return f"batch: {', '.join(parts)}; {rate}"
