"""What `rushlight verify` prints: the table of modules, then what they come to.

       module        layer                  abs error  rel error    alone  cosine
    ✓  wte           Embedding(61, 18)              0          0        0       1
    ✗  h.0.mlp.act   Activation(gelu_erf)     1.1e-03    3.3e-04  3.3e-04       1
    ~  h.0.mlp       MLP                      2.6e-03    4.8e-04        0       1

The errors are of the port as it runs; "alone" is that of a module which is given what was recorded.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rushlight.cli.terminal import stdout_console
from rushlight.errors import printable_line, printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rushlight.proof.known_answers import Answer
    from rushlight.proof.report import ModuleResult, VerifyReport

NARROW, MIDDLE = 72, 100
"""Below so many columns, only the errors that decide are shown; below the second, no layers."""
NAME = 11
"""Columns for the names of the facts."""


class Signs(NamedTuple):
    """The characters that the encoding of the output allows."""

    equal: str
    diverges: str
    carries: str
    other: str


UNICODE, ASCII = Signs("✓", "✗", "~", "–"), Signs("ok", "X", "~", "-")
STYLES = {
    "equal": "green",
    "diverges": "bold red",
    "not called": "bold red",
    "propagated": "yellow",
    "other shape": "dim",
}


def report_view(report: VerifyReport, *, table: bool = True) -> RenderableType:
    """A report as a table and a few lines, or as the lines alone."""
    signs = _signs()
    parts: list[RenderableType] = [_table(report.modules, stdout_console().width, signs), Text()] if table else []
    made_with = ", ".join(
        f"{name} {version}" for name, version in sorted(report.made_with.items()) if name != "rushlight"
    )
    limit = f"{report.limit:.2g}" if math.isfinite(report.limit) else "none"
    facts = [
        ("model", f"{report.source}, {report.device}, {report.dtype}"),
        ("recording", f"{report.golden}: {report.recorded_dtype}{', ' if made_with else ''}{made_with}"),
        ("prompts", f"{len(report.prompts)}, of {' and '.join(str(n) for n in report.prompts)} tokens"),
        (
            "tolerance",
            f"{report.tolerance:.2g} alone, {limit} in the run, of a module's largest value",
        ),
        ("weights", _weights(report)),
        ("logits", _logits(report)),
    ]
    parts += [Text.assemble((f"{name:<{NAME}}", "dim"), printable_line(fact)) for name, fact in facts if fact]
    parts.append(Text())
    if report.passed:
        n = sum(result.status == "equal" for result in report.modules)
        rounded = "" if math.isfinite(report.limit) else ", as far as rounded weights can be"
        parts.append(Text(f"{signs.equal} equal to the recording{rounded}: {n} modules", style="bold green"))
    else:
        lines = [printable_line(f"{signs.diverges} {failure}") for failure in report.failures]
        parts += [Text(lines[0], style="bold red"), *(Text(line, style="red") for line in lines[1:])]
    return Group(*parts)


def _table(modules: Sequence[ModuleResult], width: int, signs: Signs) -> Table:
    marks = {
        "equal": signs.equal,
        "diverges": signs.diverges,
        "not called": signs.diverges,
        "propagated": signs.carries,
        "other shape": signs.other,
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("module", overflow="fold")
    if width >= MIDDLE:
        table.add_column("layer", style="dim", no_wrap=True)
    if width >= NARROW:
        table.add_column("abs error", justify="right", no_wrap=True)
    table.add_column("rel error", justify="right", no_wrap=True)
    table.add_column("alone", justify="right", no_wrap=True)
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
        return f"the recorded ones, sha256 {report.weights_sha256[:12]}…"
    return f"{len(report.weights)} of the tensors are not the recorded ones"


def _logits(report: VerifyReport) -> str:
    logits = report.logits
    if logits is None:
        return ""
    parts = [
        f"off by {_number(logits.distance.relative)}",
        f"KL {_number(logits.kl)} nats",
        f"top-1 agreement {100 * logits.top1:.4g} %",
    ]
    if logits.greedy is not None:
        equal, compared = logits.greedy
        parts.append(f"greedy {equal} of {compared} tokens{', then a near tie' if logits.near_tie else ''}")
    return ", ".join(parts)


def answers_view(answers: Sequence[Answer]) -> RenderableType:
    """The known answers of GPT-2 124M, right and wrong."""
    signs = _signs()
    lines: list[RenderableType] = []
    for answer in answers:
        mark = (signs.equal, "green") if answer.right else (signs.diverges, "bold red")
        sides = "" if answer.right else f": expected {answer.expected}, found {answer.found}"
        lines.append(Text.assemble(mark, printable_line(f" {answer.what} ({answer.source}){sides}")))
    wrong = sum(not answer.right for answer in answers)
    if not wrong:
        verdict = Text(
            f"{signs.equal} OpenAI's GPT-2 124M: all {len(answers)} known answers are right", style="bold green"
        )
    else:
        verdict = Text(
            f"{signs.diverges} {wrong} of {len(answers)} known answers are wrong: either the port is, or these are not"
            " OpenAI's weights, but fine-tuned ones for instance",
            style="bold red",
        )
    return Group(*lines, Text(), verdict)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    return "0" if value == 0 else f"{value:.1e}"


def _signs() -> Signs:
    try:
        "✓✗–".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII
    return UNICODE
