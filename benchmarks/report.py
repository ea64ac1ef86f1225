"""Renders the records of a benchmark run as Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.goals import Goal, goals
from benchmarks.limits import is_wide
from benchmarks.processor import TITLES
from benchmarks.rates import (
    LLAMA,
    OURS,
    dtypes,
    least_ratio,
    limit_share,
    median,
    others,
    ratio,
    reading_share,
    readings,
    round_readings,
    samples,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MARKS = {True: "✓", False: "✗", None: "–"}


def markdown(kind: str, models: dict[str, dict[str, Any]], busy: dict[str, Any] | None = None) -> str:
    """The complete report of a kind of processor."""
    rows = goals(models, busy)
    met, missed = (sum(goal.met is which for goal in rows) for which in (True, False))
    parts = [
        f"# Benchmark results: {TITLES.get(kind, kind)}",
        "<!-- Written by `python -m benchmarks`. -->",
        "Tokens a second, medians; in parentheses × the fastest llama.cpp format of equal quality and × the best of "
        "the other runtimes, both the median of the rounds' ratios. **✗** marks a cell in which another is ahead.",
    ]
    for record in models.values():
        parts += [f"## {record['title']}", described(record), at_a_glance(record)]
    parts += [
        "## Goals",
        f"{met} met, {missed} missed, {len(rows) - met - missed} not measured.",
        table(["metric", "goal", "measured", ""], [[g.metric, g.goal, g.measured, MARKS[g.met]] for g in rows]),
    ]
    for record in models.values():
        title = record["title"]
        parts += [f"## {title}: share of the limits", LIMITS, shares(record)]
        for cell, words in record["cells"].items():
            parts += [f"## {title}: {words}, tok/s", rates(record, cell)]
        parts += [f"## {title}: start and memory", costs(record)]
        parts += [f"## {title}: arithmetic and agreement of the results", agreement(record)]
        if found := round_readings(record):
            parts += [f"## {title}: what memory gave to {TITLES.get(kind, kind)}", _rounds(found)]
        if found := problems(record):
            parts += [f"## {title}: not measured", "\n".join(f"- {problem}" for problem in found)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def described(record: dict[str, Any]) -> str:
    """When, where, with which versions and in which regime a model was measured."""
    runtimes = record["runtimes"]
    versions = ", ".join(f"{name} {each['version']}" for name, each in runtimes.items() if each.get("version"))
    n_rounds = max(record["rounds"].values(), default=0)
    text = (
        f"{record['date']} on {record['cpu']}, {record['threads']} threads: {record['weights']}, {n_rounds} rounds, "
        f"each of all runtimes. {versions}, Python {record['versions']['python']}."
    )
    if not record.get("complete"):
        text += " The run is not complete."
    text += record.get("note", "")
    if found := readings(record):
        both, one = (sorted(column) for column in zip(*found, strict=True))
        wide = sum(is_wide(*each) for each in found) / len(found)
        text += (
            f" Plain reading next to each measurement: {_spread(both)} GB/s with all threads, {_spread(one)} with one; "
            f"{wide:.0%} of the measurements in the wide regime."
        )
    return text


def _spread(ordered: list[float]) -> str:
    return f"{statistics.median(ordered):.0f} ({ordered[0]:.0f} – {ordered[-1]:.0f})"


def at_a_glance(record: dict[str, Any]) -> str:
    """The rates of rushlight by dtype, with its ratios to the others."""
    rows = []
    for cell, words in record["cells"].items():
        cells = [_glance(record, cell, dtype) for dtype in dtypes(record)]
        if any(each != "–" for each in cells):
            rows.append([words, *cells])
    shares = [reading_share(record, dtype) for dtype in dtypes(record)]
    if any(shares):
        rows.append(["decode, share of plain reading", *("–" if each is None else f"{each:.0%}" for each in shares)])
    return table(["", *dtypes(record)], rows)


def _glance(record: dict[str, Any], cell: str, dtype: str) -> str:
    rate = median(record, OURS, dtype, cell)
    if rate is None:
        return "–"
    llama = least_ratio(record, cell, dtype, [LLAMA])
    rest = least_ratio(record, cell, dtype, [name for name in others(record) if name != LLAMA])
    times = ", ".join("–" if each is None else f"{each.value:.2f}" for each in (llama, rest))
    is_behind = any(each is not None and each.value < 1 for each in (llama, rest))
    return f"{rate:,.0f} ({times})" + (" **✗**" if is_behind else "")


LIMITS = (
    "The least time in which the machine could read the bytes, or compute the operations, over the time measured; "
    "bandwidth and peak were measured next to each measurement. The peak is that of rushlight's own instructions."
)


def shares(record: dict[str, Any]) -> str:
    """Each cell of rushlight as a share of the bandwidth or of the arithmetic peak, whichever allows less."""
    rows = []
    for cell, words in record["cells"].items():
        found = [limit_share(record, cell, dtype) for dtype in dtypes(record)]
        if any(found):
            rows.append([words, *("–" if each is None else f"{each.value:.0%} of {each.bound}" for each in found)])
    if not rows:
        return "Not measured."
    for what, unit, scale in (("read_gb_s", "plain reading, GB/s", 1), ("peak_gops", "peak, GFLOP/s or GOP/s", 1)):
        row = [unit]
        for dtype in dtypes(record):
            values = [
                each[what] * scale
                for cell in record["cells"]
                for each in samples(record, OURS, dtype, cell).values()
                if what in each
            ]
            row.append(f"{statistics.median(values):,.0f}" if values else "–")
        rows.append(row)
    return table(["", *dtypes(record)], rows)


def rates(record: dict[str, Any], cell: str) -> str:
    """A table of runtimes and formats: median, range, rounds and the speedup of rushlight at the same dtype."""
    rows = []
    for name, each in record["runtimes"].items():
        for form, found in each["formats"].items():
            values = [row["tok_s"] for row in samples(record, name, form, cell).values()]
            if not values:
                continue
            times = ratio(record, cell, found["dtype"], name, form) if name != OURS else None
            rows.append(
                [
                    f"{name} {form}",
                    f"{statistics.median(values):,.0f}",
                    f"{min(values):,.0f} – {max(values):,.0f}",
                    str(len(values)),
                    "disagrees" if found.get("agrees") is False else f"{times.value:.2f} ×" if times else "–",
                ]
            )
    return table(["", "median", "min – max", "rounds", "speedup of rushlight"], rows)


def costs(record: dict[str, Any]) -> str:
    """The first token, the peak memory and the installed size of each runtime and format, as a table."""
    rows = []
    for name, each in record["runtimes"].items():
        size = f"{each['installed_bytes'] / 1e6:,.0f} MB" if each.get("installed_bytes") else "–"
        for form, found in each["formats"].items():
            first = found.get("first_token_s")
            peak = found.get("peak_bytes")
            rows.append(
                [
                    f"{name} {form}",
                    f"{first['median']:.3f} s ({first['min']:.3f} – {first['max']:.3f})" if first else "–",
                    f"{peak / 1e6:,.0f} MB" if peak else "–",
                    size,
                ]
            )
    return table(["", "process start to first token", "peak resident memory", "installed with dependencies"], rows)


def agreement(record: dict[str, Any]) -> str:
    """How far the results of each runtime are from the reference, as a table."""
    if record.get("reference") is None:
        return "Not checked: neither transformers nor rushlight ran in float32."
    rows = []
    for name, each in record["runtimes"].items():
        for form, found in each["formats"].items():
            if "logits_error" in found:
                verdict = "yes" if found["agrees"] else "**no: not compared**"
                how = found.get("computes") or "–"
                errors = [f"{found[what]:.2g}" for what in ("logits_error", "greedy_gap")]
                rows.append([f"{name} {form}", how, *errors, verdict])
    return (
        f"Against {record['reference']} in float32, in standard deviations of its logits: the root mean square "
        "difference over a prompt, and how far the worst token of a greedy batch lies below its maximum.\n\n"
        + table(["", "products, as the library states them", "difference", "worst token", "agrees"], rows)
    )


def problems(record: dict[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    found = []
    for name, each in record["runtimes"].items():
        if "problem" in each:
            found.append(f"{name}: {each['problem']}")
        found += [f"{name} {form}: {d['problem']}" for form, d in each["formats"].items() if "problem" in d]
    found += [f"{name}: {why}" for name, why in record["own"].get("problems", {}).items()]
    return [" ".join(each.split()) for each in found]


def _rounds(found: dict[tuple[str, int], tuple[float, float, float]]) -> str:
    rows = [
        [group, str(i + 1), f"{both:.0f}", f"{one:.0f}", f"{wide:.0%}"]
        for (group, i), (both, one, wide) in found.items()
    ]
    return table(["dtypes", "round", "plain reading, all threads, GB/s", "one thread", "in the wide regime"], rows)


# the blocks of README.md and docs/performance.md

SUMMARY_DTYPES = ("f32", "bf16", "int8", "int4")


def summary(kinds: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Small tables for README.md: rushlight on every kind of processor, with its ratios."""
    parts = [
        "Tokens a second on two cores; in parentheses × the fastest llama.cpp format of equal quality, and × the best "
        "of transformers, CTranslate2 and OpenVINO at the same dtype, in the same run. ✗: another runtime is ahead."
    ]
    for kind, models in kinds.items():
        rows = []
        for name in ("gpt2", "smollm2", "qwen3-shape"):
            record = models.get(name, {"cells": {}})
            for cell in [cell for cell in ("decode", "batch", "prefill 512") if cell in record["cells"]]:
                shown = [_glance(record, cell, dtype) for dtype in SUMMARY_DTYPES]
                title = record["title"].removesuffix(" shape")
                rows.append([f"{title}, {record['cells'][cell]}", *shown])
        date = max(record["date"] for record in models.values())[:10]
        parts += [table([f"{TITLES.get(kind, kind)}, {date}", *SUMMARY_DTYPES], rows)]
        if found := with_amx(models):
            parts += [f"With AMX: {', '.join(found)}. All others compute in vector registers."]
    reports = ", ".join(f"[{TITLES.get(kind, kind)}](benchmarks/results/{kind}.md)" for kind in kinds)
    return "\n\n".join([*parts, f"Every figure: {reports}."])


def with_amx(models: dict[str, dict[str, Any]]) -> list[str]:
    """The runtimes and formats whose products are computed by AMX, the matrix unit of some Intel processors."""
    return list(
        dict.fromkeys(
            f"{name} {form}"
            for record in models.values()
            for name, each in record["runtimes"].items()
            for form, found in each["formats"].items()
            if "amx" in found.get("computes", "").lower()
        )
    )


def missed(kinds: dict[str, dict[str, dict[str, Any]]], busy: dict[str, dict[str, Any]]) -> str:
    """The goals that are missed on any kind of processor, with what was measured on each."""
    found: dict[str, dict[str, Goal]] = {}
    for kind, models in kinds.items():
        for goal in goals(models, busy.get(kind)):
            found.setdefault(goal.metric, {})[kind] = goal
    rows = []
    for metric, by_kind in found.items():
        if any(goal.met is False for goal in by_kind.values()):
            first = next(iter(by_kind.values()))
            cells = [
                f"{by_kind[kind].measured} {MARKS[by_kind[kind].met]}" if kind in by_kind else "not measured"
                for kind in kinds
            ]
            rows.append([metric, first.goal, *cells])
    return table(["goal that is missed", "", *(TITLES.get(kind, kind) for kind in kinds)], rows)


def with_block(page: str, name: str, text: str) -> str:
    """A page whose block `name`, between two comments, holds the text.

    Raises:
        ValueError: the page has no such block.
    """
    start, end = f"<!-- {name}: written by `python -m benchmarks` -->\n", f"\n<!-- end of {name} -->\n"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"the page has no block {name!r} between {start.strip()!r} and {end.strip()!r}")
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
