"""The report of `rushlight verify`: the table of modules, and a summary.

       module        layer                  abs error  rel error  teacher-forced  cosine
    ✓  wte           Embedding(61, 18)              0          0               0       1
    ✗  h.0.mlp.act   Activation(gelu_erf)     1.1e-03    3.3e-04         3.3e-04       1
    ~  h.0.mlp       MLP                      2.6e-03    4.8e-04               0       1

The absolute and relative errors and the cosine are those of the free-running port; "teacher-forced" is the relative
error of a module that receives the recorded input.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rushlight.cli.terminal import stdout_console
from rushlight.cli.views.symbols import Symbols, symbols
from rushlight.errors import printable_line, printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rushlight.proof.known_answers import Answer
    from rushlight.proof.report import ModuleResult, VerifyReport

NARROW, MIDDLE = 72, 100
"""Below the first width, the table shows only the relative errors; below the second, no layers."""
LABEL = 11
"""Width of the labels of the summary."""

STYLES = {
    "equal": "green",
    "diverges": "bold red",
    "not called": "bold red",
    "propagated": "yellow",
    "other shape": "dim",
}


def report_view(report: VerifyReport, *, table: bool = True) -> RenderableType:
    """A report as a table and a summary, or only the summary."""
    shown = symbols()
    parts: list[RenderableType] = [_table(report.modules, stdout_console().width, shown), Text()] if table else []
    made_with = ", ".join(
        f"{name} {version}" for name, version in sorted(report.made_with.items()) if name != "rushlight"
    )
    limit = f"{report.limit:.2g}" if math.isfinite(report.limit) else "none"
    facts = [
        ("model", f"{report.source}, {report.device}, {report.dtype}"),
        ("recording", f"{report.golden}: {report.recorded_dtype}{', ' if made_with else ''}{made_with}"),
        ("prompts", f"{len(report.prompts)}, with {' and '.join(str(n) for n in report.prompts)} tokens"),
        (
            "tolerance",
            f"{report.tolerance:.2g} teacher-forced, {limit} free-running, relative to the largest value of a module",
        ),
        ("weights", _weights(report)),
        ("logits", _logits(report)),
    ]
    parts += [Text.assemble((f"{name:<{LABEL}}", "dim"), printable_line(fact)) for name, fact in facts if fact]
    parts.append(Text())
    if report.passed:
        n = sum(result.status == "equal" for result in report.modules)
        rounded = "" if math.isfinite(report.limit) else ", within the error of quantised weights"
        parts.append(Text(f"{shown.passed} equal to the recording{rounded}: {n} modules", style="bold green"))
    else:
        lines = [printable_line(f"{shown.failed} {failure}") for failure in report.failures]
        parts += [Text(lines[0], style="bold red"), *(Text(line, style="red") for line in lines[1:])]
    return Group(*parts)


def _table(modules: Sequence[ModuleResult], width: int, shown: Symbols) -> Table:
    marks = {
        "equal": shown.passed,
        "diverges": shown.failed,
        "not called": shown.failed,
        "propagated": shown.propagated,
        "other shape": shown.missing,
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("module", overflow="fold")
    if width >= MIDDLE:
        table.add_column("layer", style="dim", no_wrap=True)
    if width >= NARROW:
        table.add_column("abs error", justify="right", no_wrap=True)
    table.add_column("rel error", justify="right", no_wrap=True)
    table.add_column("teacher-forced", justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("cosine", justify="right", no_wrap=True)
    for result in modules:
        run = result.free_running
        style = STYLES[result.status]
        cells = [Text(marks[result.status], style=style), Text(printable_name(result.name), style=style)]
        if width >= MIDDLE:
            cells.append(Text(printable_name(result.kind)))
        if width >= NARROW:
            cells.append(Text(_number(run and run.absolute)))
        cells += [Text(_number(run and run.relative)), Text(_number(result.teacher_forced))]
        if width >= NARROW:
            cells.append(Text("–" if run is None else f"{run.cosine:.6g}"))
        table.add_row(*cells)
    return table


def _weights(report: VerifyReport) -> str:
    if report.weights is None:
        return ""
    if not report.weights:
        return f"same as recorded, sha256 {report.weights_sha256[:12]}…"
    return f"{len(report.weights)} tensors differ from the recorded ones"


def _logits(report: VerifyReport) -> str:
    logits = report.logits
    if logits is None:
        return ""
    parts = [
        f"relative error {_number(logits.distance.relative)}",
        f"KL {_number(logits.kl)} nats",
        f"top-1 agreement {100 * logits.top1:.4g} %",
    ]
    if logits.greedy is not None:
        equal, compared = logits.greedy
        parts.append(f"greedy {equal} of {compared} tokens{', then a near tie' if logits.near_tie else ''}")
    return ", ".join(parts)


def answers_view(answers: Sequence[Answer]) -> RenderableType:
    """The comparison with published results of GPT-2 124M, line by line."""
    shown = symbols()
    lines: list[RenderableType] = []
    for answer in answers:
        mark = (shown.passed, "green") if answer.right else (shown.failed, "bold red")
        sides = "" if answer.right else f": expected {answer.expected}, found {answer.found}"
        lines.append(Text.assemble(mark, printable_line(f" {answer.what} ({answer.source}){sides}")))
    wrong = sum(not answer.right for answer in answers)
    if not wrong:
        verdict = Text(
            f"{shown.passed} OpenAI's GPT-2 124M: all {len(answers)} published results are reproduced",
            style="bold green",
        )
    else:
        verdict = Text(
            f"{shown.failed} {wrong} of {len(answers)} published results are not reproduced: the port is wrong, or"
            " the weights are not OpenAI's, such as fine-tuned ones",
            style="bold red",
        )
    return Group(*lines, Text(), verdict)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    return "0" if value == 0 else f"{value:.1e}"
