"""Plots tokens per second of each runtime at each dtype, as an SVG for README.md.

Written without a library, so that it supports dark mode and stays readable as text.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from benchmarks.rates import dtypes, median

WIDTH = 860
MARGIN = 24
LABEL = 52
BAR, GAP, GROUP_GAP, PANEL_GAP = 12, 2, 10, 34
COLOURS = {"rushlight": "#e8871e", "llama.cpp": "#4f7cac", "transformers": "#7fb069", "CTranslate2": "#9b6fb0"}
OTHER = "#999999"

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px }
.value { font-size: 10.5px }
.axis { stroke: #d0d7de }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { stroke: #444c56 } }"""


CELLS = ("decode", "prefill 512", "batch")


def svg(record: dict[str, Any]) -> str:
    """A panel for each kind of step, with the bars grouped by dtype."""
    found = dtypes(record)
    names = [name for name in record["runtimes"] if any(_rate(record, dtype, name, "decode") for dtype in found)]
    parts, y = _legend(names), 58
    for cell in CELLS:
        if cell in record["cells"]:
            panel, y = _panel(record, cell, f"{record['cells'][cell]}, tokens per second", names, y)
            parts += panel
            y += PANEL_GAP
    caption = (
        f"{record['title']}, {record['cpu']}, {record['threads']} threads, {record['date'][:10]}. "
        "Medians of the fastest format; longer is faster."
    )
    parts.append(f'<text x="{MARGIN}" y="{y}" class="value">{escape(caption)}</text>')
    height = y + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Tokens per second of rushlight and other runtimes">\n<style>\n{STYLE}\n</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rate(record: dict[str, Any], dtype: str, runtime: str, cell: str) -> float | None:
    """The rate of a runtime's fastest format of a dtype."""
    formats = record["runtimes"][runtime]["formats"]
    found = [median(record, runtime, form, cell) for form, each in formats.items() if each.get("dtype") == dtype]
    return max((rate for rate in found if rate is not None), default=None)


def _legend(names: list[str]) -> list[str]:
    parts, x = [], MARGIN
    for name in names:
        parts.append(f'<rect x="{x}" y="14" width="12" height="12" rx="2" fill="{COLOURS.get(name, OTHER)}"/>')
        parts.append(f'<text x="{x + 18}" y="24">{escape(name)}</text>')
        x += 46 + 7 * len(name)
    return parts


def _panel(record: dict[str, Any], cell: str, title: str, names: list[str], y: int) -> tuple[list[str], int]:
    """The panel of one kind of step at height y, and the height below it."""
    every = {(dtype, name): _rate(record, dtype, name, cell) for dtype in dtypes(record) for name in names}
    rates = {key: rate for key, rate in every.items() if rate is not None}
    parts = [f'<text x="{MARGIN}" y="{y}" class="title">{escape(title)}</text>']
    y += 10
    top = y
    longest = max(rates.values(), default=1.0)
    left, room = MARGIN + LABEL, WIDTH - 2 * MARGIN - LABEL - 60
    for dtype in dtypes(record):
        shown = [name for name in names if (dtype, name) in rates]
        if not shown:
            continue
        middle = y + (len(shown) * (BAR + GAP)) / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end">{dtype}</text>')
        for name in shown:
            rate = rates[dtype, name]
            width = max(1.0, room * rate / longest)
            colour = COLOURS.get(name, OTHER)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}">'
                f"<title>{escape(name)} {dtype}: {rate:,.0f} tok/s</title></rect>"
            )
            parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 10}" class="value">{rate:,.0f}</text>')
            y += BAR + GAP
        y += GROUP_GAP
    parts.append(f'<line x1="{left}" y1="{top - 2}" x2="{left}" y2="{y - GROUP_GAP + 2}" class="axis"/>')
    return parts, y
