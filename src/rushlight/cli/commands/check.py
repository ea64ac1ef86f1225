"""`rushlight check`: check whether a checkpoint fits a model, and suggest fixes."""

from __future__ import annotations

import shutil
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rushlight.cli.exit_codes import CHECK_FAILED
from rushlight.cli.options import MODEL, OUTPUT, Debug, HeaderSource, ModelFlag, Offline, Port, Revision, need_source
from rushlight.cli.progress import reading
from rushlight.cli.terminal import out_json, show, status
from rushlight.errors import printable, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from rushlight.porting.check import CheckReport, Evidence, Finding

MAX_WIDTH = 100
MAX_EVIDENCE = 8

EXAMPLES = """
\b
Examples:
  rushlight check model.safetensors
  rushlight check ./folder --architecture gpt2
  rushlight check openai-community/gpt2
  rushlight check ./folder --port my_model.py
  rushlight check ./folder --json | jq '.findings[].cause'
"""


def _architectures(incomplete: str) -> list[str]:
    from rushlight.models import ARCHITECTURES

    return [name for name in ARCHITECTURES if name.startswith(incomplete)]


def check(
    source: HeaderSource = None,
    model: ModelFlag = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            "-a",
            metavar="NAME",
            autocompletion=_architectures,
            rich_help_panel=MODEL,
            help="The architecture to compare with, such as gpt2. Default: from config.json or the tensor names.",
        ),
    ] = None,
    port: Port = None,
    offline: Offline = False,
    revision: Revision = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data/--no-data",
            rich_help_panel=OUTPUT,
            help="Read all values to find NaN and Inf (the default for local checkpoints).",
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object with all affected tensors.")
    ] = False,
    _debug: Debug = False,
) -> None:
    """Report every reason why a checkpoint does not fit a model, with suggested fixes.

    Exit code 0: it fits; 1: it does not; 2: the checkpoint cannot be read.
    """
    from rushlight.checkpoint import open_headers
    from rushlight.models.tied import tied_heads
    from rushlight.porting.check.checkpoint import check_checkpoint, resolve_architecture

    _refuse_architecture(source, model)
    name = need_source(source, model)
    expected = resolve_architecture(architecture, port)
    with status(f"opening {name}"):
        checkpoint = open_headers(
            name, offline=offline, revision=revision, allow_missing=partial(tied_heads, architecture=expected)
        )
    with (
        checkpoint,
        reading(
            sum(tensor.nbytes for tensor in checkpoint.values()), visible=data and not checkpoint.is_remote
        ) as advance,
    ):
        report = check_checkpoint(checkpoint, expected, data=data, advance=advance)
    if as_json:
        out_json(report.to_json())
    else:
        show(page(report, _width()))
    if not report.fits:
        raise typer.Exit(CHECK_FAILED)


def _refuse_architecture(source: str | None, model: str | None) -> None:
    """Refuses the name of an architecture as --model, which is the checkpoint, and suggests the right flag."""
    from rushlight.models import ARCHITECTURES

    if source is not None and model != source and model in ARCHITECTURES:
        raise typer.BadParameter(
            f"expected a checkpoint, found the name of an architecture; use --architecture {model}",
            param_hint="--model",
        )


def _width() -> int:
    return min(MAX_WIDTH, shutil.get_terminal_size().columns if sys.stdout.isatty() else MAX_WIDTH)


def page(report: CheckReport, width: int) -> Text:
    """The report, wrapped to `width` columns except for names and code."""
    from rich.text import Text

    text = Text()
    text.append(f"{printable_name(report.source)}\n", "bold")
    if report.model:
        text.append(_wrapped(f"compared with {printable_name(report.model)}", width, indent=""))
    if report.saved_by:
        text.append(_wrapped(f"saved by {printable_name(report.saved_by)}", width, indent=""))
    for finding in report.findings:
        text.append("\n")
        _finding(text, finding, width)
    n = sum(finding.is_problem for finding in report.findings)
    verdict = f"does not fit: {n} problem{'s' if n > 1 else ''}" if n else "fits"
    text.append("\n")
    text.append(verdict, "bold red" if n else "bold green")
    if report.script:
        complete = all(finding.in_script for finding in report.findings if finding.is_problem)
        effect = "writes a fixed copy" if complete else "fixes what needs no decision"
        text.append(f"\n\nThis script {effect} (pip install safetensors):\n\n")
        text.append(textwrap.indent(printable(report.script).rstrip(), "    "), "cyan")
    return text


def _finding(text: Text, finding: Finding, width: int) -> None:
    mark, style = ("problem", "bold red") if finding.is_problem else ("note", "bold yellow")
    text.append(f"{mark}: ", style)
    text.append(f"{printable_name(finding.title)}\n", "bold")
    for paragraph in finding.why.splitlines():
        text.append(_wrapped(printable(paragraph), width))
    for name, detail in _aligned(finding.evidence[:MAX_EVIDENCE]):
        text.append(f"    {name}")
        text.append(f"{detail}\n", "dim")
    if len(finding.evidence) > MAX_EVIDENCE:
        text.append(f"    and {len(finding.evidence) - MAX_EVIDENCE:,} more: --json lists all\n", "dim")
    if finding.fix:
        text.append(_wrapped(f"Fix: {finding.fix}.", width), "green")


def _wrapped(paragraph: str, width: int, indent: str = "  ") -> str:
    return textwrap.fill(
        paragraph,
        max(width, 30),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) + "\n"  # fmt: skip


def _aligned(evidence: tuple[Evidence, ...]) -> Iterator[tuple[str, str]]:
    """Names with their counts, and details aligned in a column."""
    names = [printable_name(each.name) + (f" ×{each.n_tensors}" if each.n_tensors > 1 else "") for each in evidence]
    width = min(max(map(len, names), default=0), 60)
    for name, each in zip(names, evidence, strict=True):
        detail = printable_name(each.detail)
        yield (name.ljust(width), f"  {detail}") if detail else (name, "")
