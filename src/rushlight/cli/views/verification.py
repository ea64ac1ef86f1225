"""The report of `rushlight verify`: the table of modules, and a summary.

       module        layer                  abs error  rel error  teacher-forced  cosine
    ✓  wte           Embedding(61, 18)              0          0               0       1
    ✗  h.0.mlp.act   Activation(gelu_erf)     1.1e-03    3.3e-04         3.3e-04       1
    ~  h.0.mlp       MLP                      2.6e-03    4.8e-04               0       1

The absolute and relative errors and the cosine are those of the free-running port; "teacher-forced" is the relative
error of a module that receives the recorded input. In a long table, the modules of all blocks with the same name and
status are one row, with their number and the worst of each error:

       modules       n  layer             abs error  rel error  teacher-forced  cosine
    ✓  h.*.mlp.c_fc  48  Conv1D(64, 256)     1.1e-06    3.3e-07         3.3e-07       1
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rushlight.cli.terminal import stdout_console
from rushlight.cli.views.symbols import Symbols, symbols
from rushlight.errors import printable_line, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from rushlight.proof.known_answers import Answer
    from rushlight.proof.report import ModuleResult, Status, VerifyReport

NARROW, MIDDLE = 72, 100
"""Below the first width, the table shows only the relative errors; below the second, no layers."""
LABEL = 11
"""Width of the labels of the summary."""
MAX_ROWS = 40
"""The number of modules above which the table is summarised."""
MAX_DIVERGENT = 20
"""The most rows of single divergent modules in a summarised table."""

STYLES = {
    "equal": "green",
    "diverges": "bold red",
    "not called": "bold red",
    "propagated": "yellow",
    "other shape": "dim",
}


def report_view(report: VerifyReport, *, table: bool = True, every_module: bool = False) -> RenderableType:
    """The table of a report, and what was compared.

    Args:
        report: the report.
        table: whether to show the table.
        every_module: whether a long table has a row for every module.
    """
    parts: list[RenderableType] = []
    if table:
        parts += [*_tables(report.modules, every_module=every_module), Text()]
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
    return Group(*parts)


def verdict_view(report: VerifyReport) -> RenderableType:
    """Whether the port is proven equal, or else every reason why not; after a blank line."""
    shown = symbols()
    if report.passed:
        n = sum(result.status == "equal" for result in report.modules)
        rounded = "" if math.isfinite(report.limit) else ", within the error of quantised weights"
        return Group("", Text(f"{shown.passed} equal to the recording{rounded}: {n} modules", style="bold green"))
    lines = [printable_line(f"{shown.failed} {failure}") for failure in report.failures]
    return Group("", Text(lines[0], style="bold red"), *(Text(line, style="red") for line in lines[1:]))


class _Row(NamedTuple):
    """A row of the table: one module, or `n` modules with the worst of each of their numbers."""

    name: str
    n: int
    kind: str
    status: Status
    absolute: float | None
    relative: float | None
    teacher_forced: float | None
    cosine: float | None

    @classmethod
    def of(cls, name: str, results: Sequence[ModuleResult]) -> _Row:
        kinds = {result.kind for result in results}
        runs = [result.free_running for result in results if result.free_running is not None]
        return cls(
            name,
            len(results),
            kinds.pop() if len(kinds) == 1 else results[0].kind.partition("(")[0],
            results[0].status,
            _worst(run.absolute for run in runs),
            _worst(run.relative for run in runs),
            _worst(result.teacher_forced for result in results),
            min((run.cosine for run in runs), key=_cosine_order, default=None),
        )


def _tables(modules: Sequence[ModuleResult], *, every_module: bool) -> list[RenderableType]:
    """The table, and a line that says what it leaves out."""
    width, shown = stdout_console().width, symbols()
    if every_module or len(modules) <= MAX_ROWS:
        return [_table([_Row.of(result.name, [result]) for result in modules], width, shown)]
    rows, n_left_out = _summary(modules)
    line = f"{len(modules)} modules; --all shows each"
    if n_left_out:
        more = "module that differs is" if n_left_out == 1 else "modules that differ are"
        line = f"{n_left_out} more {more} not shown; {len(modules)} modules, --all shows each"
    return [_table(rows, width, shown), Text(line, style="dim")]


def _summary(modules: Sequence[ModuleResult]) -> tuple[list[_Row], int]:
    """Rows of the modules with one name in all blocks; the first that are wrong by themselves have their own row."""
    groups: dict[tuple[str, Status], list[ModuleResult]] = {}
    n_single, n_left_out = 0, 0
    for result in modules:
        if result.status in ("equal", "propagated"):
            name = re.sub(r"(?<![^.])\d+(?![^.])", "*", result.name)
        elif n_single < MAX_DIVERGENT:
            name, n_single = result.name, n_single + 1
        else:
            n_left_out += 1
            continue
        groups.setdefault((name, result.status), []).append(result)
    return [
        _Row.of(results[0].name if len(results) == 1 else name, results) for (name, _), results in groups.items()
    ], (n_left_out)


def _table(rows: Sequence[_Row], width: int, shown: Symbols) -> Table:
    marks = {
        "equal": shown.passed,
        "diverges": shown.failed,
        "not called": shown.failed,
        "propagated": shown.propagated,
        "other shape": shown.missing,
    }
    is_summary = any(row.n > 1 for row in rows)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("modules" if is_summary else "module", overflow="fold")
    if is_summary:
        table.add_column("n", justify="right", no_wrap=True)
    if width >= MIDDLE:
        table.add_column("layer", style="dim", no_wrap=True)
    if width >= NARROW:
        table.add_column("abs error", justify="right", no_wrap=True)
    table.add_column("rel error", justify="right", no_wrap=True)
    table.add_column("teacher-forced", justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("cosine", justify="right", no_wrap=True)
    for row in rows:
        style = STYLES[row.status]
        cells = [Text(marks[row.status], style=style), Text(printable_name(row.name), style=style)]
        if is_summary:
            cells.append(Text(str(row.n)))
        if width >= MIDDLE:
            cells.append(Text(printable_name(row.kind)))
        if width >= NARROW:
            cells.append(Text(_number(row.absolute)))
        cells += [Text(_number(row.relative)), Text(_number(row.teacher_forced))]
        if width >= NARROW:
            cells.append(Text("–" if row.cosine is None else f"{row.cosine:.6g}"))
        table.add_row(*cells)
    return table


def _worst(values: Iterable[float | None]) -> float | None:
    """The largest value; NaN if there is one, None if there is no value."""
    known = [value for value in values if value is not None]
    return max(known, key=lambda value: (math.isnan(value), value), default=None)


def _cosine_order(value: float) -> tuple[bool, float]:
    return not math.isnan(value), value


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
