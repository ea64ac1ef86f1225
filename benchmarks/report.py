"""Renders the record of a benchmark run as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.goals import goals, ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEPS = {
    "decode_tok_s": "decode, one sequence",
    "prefill_tok_s": "prefill of {prompt_tokens}",
    "batch_decode_tok_s": "decode, batch size {batch_size}",
}
"""The rates of a record -> their titles."""

MARKS = {True: "met", False: "**missed**", None: "–"}


def markdown(record: dict[str, Any]) -> str:
    """The complete report."""
    config, runtimes = record["config"], record["runtimes"]
    versions = ", ".join(f"{name} {entry['version']}" for name, entry in runtimes.items() if entry.get("version"))
    parts = [
        "# Benchmark results",
        "<!-- Written by `python -m benchmarks`. -->",
        f"{record['date']} on {record['cpu']}, {record['threads']} threads: GPT-2 124M shape, random weights, "
        f"{config['repeats']} rounds, each of all runtimes. {versions}, Python {record['versions']['python']}.",
        "## Goals",
        table(
            ["metric", "goal", "measured", ""],
            [[goal.metric, goal.goal, goal.measured, MARKS[goal.met]] for goal in goals(record)],
        ),
    ]
    for metric, title in STEPS.items():
        parts += [f"## {title.format(**config)}, tok/s", rates(record, metric)]
    parts += ["## Start and memory", costs(record), "## Agreement of the results", agreement(record)]
    if found := problems(record):
        parts += ["## Not measured", "\n".join(f"- {problem}" for problem in found)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def dtypes(record: dict[str, Any]) -> list[str]:
    """The dtypes of all runtimes, in the order they were measured."""
    return list(dict.fromkeys(dtype for entry in record["runtimes"].values() for dtype in entry["dtypes"]))


def rates(record: dict[str, Any], metric: str) -> str:
    """A table of runtimes by dtypes: median, range and the speedup of rushlight."""
    rows = []
    for name, entry in record["runtimes"].items():
        if entry.get("version") is None:
            continue
        row = [name]
        for dtype in dtypes(record):
            sample = entry["dtypes"].get(dtype, {}).get(metric)
            cell = "–"
            if sample:
                cell = f"{sample['median']:,.0f} ({sample['min']:,.0f} – {sample['max']:,.0f})"
                times, _ = ratio(record, metric, dtype, name) if name != "rushlight" else (None, "")
                if times is not None:
                    cell += f", {times:.2f} ×"
                elif entry["dtypes"][dtype].get("agrees") is False:
                    cell += ", disagrees"
            row.append(cell)
        rows.append(row)
    return (
        "Median (min – max), and the speedup of rushlight over this runtime: the median of the rounds' ratios.\n\n"
        + table(["", *dtypes(record)], rows)
    )


def costs(record: dict[str, Any]) -> str:
    """The first token, the peak memory and the installed size of each runtime, as a table."""
    rows = []
    for name, entry in record["runtimes"].items():
        if entry.get("version") is None:
            continue
        first = entry["dtypes"].get("f32", {}).get("first_token_s")
        peaks = [(dtype, found["peak_bytes"]) for dtype, found in entry["dtypes"].items() if "peak_bytes" in found]
        rows.append(
            [
                name,
                f"{first['median']:.3f} s ({first['min']:.3f} – {first['max']:.3f})" if first else "–",
                ", ".join(f"{dtype} {peak / 1e6:,.0f} MB" for dtype, peak in peaks) or "–",
                f"{entry['installed_bytes'] / 1e6:,.0f} MB" if entry.get("installed_bytes") else "–",
            ]
        )
    return table(
        ["", "process start to first token, f32", "peak resident memory", "installed size with dependencies"], rows
    )


def agreement(record: dict[str, Any]) -> str:
    """How far the results of each runtime are from the reference, as a table."""
    if record.get("reference") is None:
        return "Not checked: neither transformers nor rushlight ran in float32."
    rows = []
    for name, entry in record["runtimes"].items():
        for dtype, found in entry["dtypes"].items():
            if "logits_error" in found:
                verdict = "yes" if found["agrees"] else "**no: not compared**"
                rows.append([name, dtype, f"{found['logits_error']:.2g}", f"{found['greedy_gap']:.2g}", verdict])
    return (
        f"Against {record['reference']} in float32, in standard deviations of its logits: the root mean square "
        "difference over a prompt, and how far the worst token of a greedy batch lies below its maximum.\n\n"
        + table(["", "dtype", "difference", "worst token", "agrees"], rows)
    )


def problems(record: dict[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    found = []
    for name, entry in record["runtimes"].items():
        if "problem" in entry:
            found.append(f"{name}: {entry['problem']}")
        found += [f"{name} {dtype}: {d['problem']}" for dtype, d in entry["dtypes"].items() if "problem" in d]
        found += [f"{key}: {value}" for key, value in entry.items() if key.endswith("in a fresh process")]
    return found
