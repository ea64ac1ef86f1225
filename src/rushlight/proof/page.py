"""A verification as one self-contained page: the verdict, a plot of the error through depth, and the table.

There is no script in it and nothing is fetched; its Content-Security-Policy has the browser hold it to that. It is light
or dark as the reader's system is.
"""

from __future__ import annotations

import math
import re
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from rushlight.errors import printable_name
from rushlight.proof.report import DRIFT
from rushlight.viewer.page import integrity, write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from rushlight.proof.report import ModuleResult, Report

__all__ = ["render_report", "write_report"]

_SLOT = re.compile(r"\{\{(\w+)\}\}")

WIDTH, HEIGHT = 1080, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 22, 34
"""Of the plot, in its own pixels; the margins hold the labels."""
LEAST, MOST = -9, 1
"""Powers of ten at the ends of the axis; what is beyond is drawn at its end."""


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write the page of a report, over what is there: whole, or not at all.

    Raises:
        OSError: the folder is not there or not to be written to, or the disk is full; nothing is left behind.
    """
    write_whole(path, render_report(report))


def render_report(report: Report) -> str:
    """The page of a report as HTML."""
    style = _asset("page.css")
    policy = f"default-src 'none'; style-src '{integrity(style)}'; base-uri 'none'; form-action 'none'"
    parts = {
        "policy": policy,
        "style": style,
        "title": _text(report.source) or "model",
        "failed": "" if report.passed else " failed",
        "verdict": _verdict(report),
        "facts": _facts(report),
        "plot": _plot(report),
        "rows": "".join(_row(result) for result in report.modules),
    }
    # One pass: what stands in a part is never taken for a slot.
    return _SLOT.sub(lambda slot: parts[slot[1]], _asset("page.html"))


def _verdict(report: Report) -> str:
    if report.passed:
        n = sum(result.status == "equal" for result in report.modules)
        return f"<p>Equal to the recording: {n} modules</p>"
    return "<p>Not equal to the recording</p>" + "".join(f"<p>{_text(failure)}</p>" for failure in report.failures)


def _facts(report: Report) -> str:
    made_with = ", ".join(f"{name} {version}" for name, version in sorted(report.made_with.items()))
    facts = [
        ("computed with", f"{report.device}, {report.dtype}"),
        ("recording", f"{report.golden}: {report.recorded_dtype}, {made_with}"),
        ("prompts", ", ".join(f"{n} tokens" for n in report.prompts)),
        ("tolerance", f"{report.tolerance:.2g} for a module alone, {DRIFT * report.tolerance:.2g} for the run"),
    ]
    if report.weights is not None:
        different = "; ".join(f"{each.name}: {each.how}" for each in report.weights[:20])
        facts.append(("weights", different or "the recorded ones"))
    if report.logits is not None:
        logits = report.logits
        facts.append(("logits", f"off by {_number(logits.distance.relative)}, KL {_number(logits.kl)} nats"))
        facts.append(("top-1 agreement", f"{100 * logits.top1:.4g} %"))
        if logits.greedy is not None:
            facts.append(("greedy text", f"{logits.greedy[0]} of {logits.greedy[1]} tokens equal"))
    facts += [("note", note) for note in report.notes]
    return "".join(f"<dt>{_text(name)}</dt><dd>{_text(fact)}</dd>" for name, fact in facts)


def _plot(report: Report) -> str:
    """Relative errors on a logarithmic axis, module by module; what is not finite stands at the top."""
    modules = report.modules
    step = (WIDTH - LEFT - RIGHT) / max(len(modules), 1)
    xs = [LEFT + (i + 0.5) * step for i in range(len(modules))]
    lines = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Relative error of each module">']
    for power in range(LEAST, MOST + 1, 2):
        y = _y(10.0**power)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for limit, name in ((report.tolerance, "tolerance alone"), (DRIFT * report.tolerance, "tolerance of the run")):
        y = _y(limit)
        lines.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{name}</text>')
    if report.first is not None:
        x = xs[modules.index(report.first)]
        anchor = "start" if x < WIDTH / 2 else "end"
        lines.append(f'<line class="first" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        name = _text(report.first.name)
        lines.append(f'<text class="first-name" x="{x:.1f}" y="{TOP - 8}" text-anchor="{anchor}">{name}</text>')
    points = [(x, _y(result.run.relative)) for x, result in zip(xs, modules, strict=True) if result.run is not None]
    lines.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    lines += _dots(modules, xs)
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{_text(modules[0].name)}</text>')
    last = _text(modules[-1].name)
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{last}</text></svg>')
    return "\n".join(lines)


def _dots(modules: Sequence[ModuleResult], xs: Sequence[float]) -> list[str]:
    dots = []
    for x, result in zip(xs, modules, strict=True):
        errors = [("run", result.run.relative if result.run else None), ("alone", result.alone)]
        for kind, error in errors:
            if error is not None:
                wrong = kind == "alone" and result.status in ("diverges", "not called")
                title = _text(f"{result.name}: {_number(error)} {'as it runs' if kind == 'run' else 'alone'}")
                size = 4.5 if wrong else 2.6
                dots.append(
                    f'<circle class="{"bad" if wrong else kind}" cx="{x:.1f}" cy="{_y(error):.1f}" r="{size}">'
                    f"<title>{title}</title></circle>"
                )
    return dots


def _y(error: float) -> float:
    power = MOST if not math.isfinite(error) else math.log10(error) if error > 0 else LEAST
    share = (min(max(power, LEAST), MOST) - LEAST) / (MOST - LEAST)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _row(result: ModuleResult) -> str:
    run = result.run
    cause = f' <span class="cause">{_text(result.cause)}</span>' if result.cause else ""
    return (
        f'<tr class="{result.status.replace(" ", "-")}"><td>{_text(result.name)}'
        f'<td class="layer wide" title="recorded: {_text(result.recorded)}">{_text(result.kind)}'
        f'<td class="number wide">{_number(run and run.absolute)}<td class="number">{_number(run and run.relative)}'
        f'<td class="number">{_number(result.alone)}'
        f'<td class="number wide">{"–" if run is None else f"{run.cosine:.6g}"}'
        f'<td><span class="status">{result.status}</span>{cause}</tr>\n'
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    return "0" if value == 0 else f"{value:.1e}"


def _text(text: str) -> str:
    """A text for the page: names come from files."""
    return escape(printable_name(text))


def _asset(name: str) -> str:
    return resources.files("rushlight.proof").joinpath(name).read_text(encoding="utf-8")
